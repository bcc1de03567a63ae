"""The same sparsity everywhere: what every other profile is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sparsity_search.interfaces.allocator import AllocationProblem, Allocator
from sparsity_search.interfaces.units import ALL_UNITS


@dataclass(frozen=True, kw_only=True)
class UniformAllocator(Allocator):
    """The target sparsity in every unit, as far as bounds allow."""

    units: ClassVar[tuple[str, ...]] = ALL_UNITS
    needs_text: ClassVar[bool] = False

    def propose(self, problem: AllocationProblem) -> np.ndarray:
        """Return the target for every unit."""
        return np.full(len(problem.layout), problem.target)
