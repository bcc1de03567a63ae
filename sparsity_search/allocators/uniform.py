"""The same sparsity everywhere: what every other profile is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sparsity_search.interfaces.allocator import Allocator
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.profile import SparsityProfile


@dataclass(frozen=True, kw_only=True)
class UniformAllocator(Allocator):
    """The target sparsity in every unit, as far as bounds allow."""

    needs_text: ClassVar[bool] = False

    def allocate(
        self, subject: PrunableModel, tokens: Tensor, budget: Budget, bounds: Bounds
    ) -> SparsityProfile:
        """Return the uniform profile; ``tokens`` are not read."""
        del tokens
        return budget.uniform(subject.layout, bounds)
