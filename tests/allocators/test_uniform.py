from __future__ import annotations

import numpy as np
import torch

from sparsity_search.allocators.uniform import UniformAllocator
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Bounds, Budget


def test_is_the_target_everywhere(tiny_subject: PrunableModel) -> None:
    layout, nothing = tiny_subject.layout, torch.empty(0, 0)
    found = UniformAllocator().allocate(tiny_subject, nothing, Budget(0.37), Bounds.of(layout))
    np.testing.assert_allclose(found.sparsities, 0.37, atol=1 / 512)
    assert not UniformAllocator.needs_text
