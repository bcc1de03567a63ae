from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsity_search.allocators.by_role import ByRoleAllocator
from sparsity_search.errors import ConfigError, UnknownNameError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.registry import ALLOCATORS, describe
from sparsity_search.testing.models import tiny_llama

NOTHING = torch.empty(0, 0)
SUBJECT = PrunableModel(tiny_llama(layers=3))
ROLES = ("q", "k", "v", "o", "gate", "up", "down")


def allocated(offsets: object, target: float = 0.5) -> SparsityProfile:
    layout = SUBJECT.layout
    allocator = ALLOCATORS.create("by_role", offsets=offsets)
    return allocator.allocate(SUBJECT, NOTHING, Budget(target), Bounds.of(layout))


@pytest.mark.parametrize("offsets", [{}, dict.fromkeys(ROLES, 0.2)])
@pytest.mark.parametrize("target", [0.1, 0.5, 0.95])
def test_equal_offsets_are_uniform(offsets: dict[str, float], target: float) -> None:
    assert allocated(offsets, target) == Budget(target).uniform(SUBJECT.layout)


@settings(max_examples=25)
@given(offsets=st.dictionaries(st.sampled_from(ROLES), st.floats(-0.2, 0.2)))
def test_differences_are_the_offsets(offsets: dict[str, float]) -> None:
    found = allocated(offsets).grouped("role")
    layout, sizes = SUBJECT.layout, dict.fromkeys(ROLES, 0)
    for unit in layout:
        sizes[unit.role] += unit.count
    # closed form, since nothing is clipped: the weighted mean of the offsets is taken away
    mean = sum(sizes[r] * offsets.get(r, 0.0) for r in ROLES) / layout.n_weights
    expected = [0.5 + offsets.get(role, 0.0) - mean for role in ROLES]
    np.testing.assert_allclose([found[r] for r in ROLES], expected, atol=1 / 512)


def test_equal_over_depth_and_exact() -> None:
    profile = allocated({"q": 0.3, "down": -0.1})
    by_unit = {
        (u.block, u.role): s for u, s in zip(profile.layout, profile.sparsities, strict=True)
    }
    for role in ROLES:
        assert np.ptp([by_unit[block, role] for block in range(3)]) <= 1 / 512
    assert profile.n_removed == Budget(0.5).n_removed(SUBJECT.layout)


def test_is_a_value() -> None:
    one, other = (
        ALLOCATORS.create("by_role", offsets={"q": 0.1, "k": 0}),
        ByRoleAllocator(offsets=(("k", 0.0), ("q", 0.1))),
    )
    assert one == other
    assert hash(one) == hash(other)
    assert describe(one) == "ByRole(offsets=(('k', 0.0), ('q', 0.1)))"
    assert not ByRoleAllocator.needs_text


def test_faults() -> None:
    with pytest.raises(UnknownNameError, match="'gat': did you mean 'gate'"):
        allocated({"gat": 0.1})
    with pytest.raises(ConfigError, match=r"offsets must lie in \[-1, 1\]"):
        ALLOCATORS.create("by_role", offsets={"q": 2.0})
