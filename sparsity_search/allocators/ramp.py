"""A ramp: sparsity rises with depth by one step a block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sparsity_search.errors import ConfigError
from sparsity_search.interfaces.allocator import AllocationProblem, Allocator


@dataclass(frozen=True, kw_only=True)
class RampAllocator(Allocator):
    """Sparsity rises by one step a block (ATP).

    Block ``b`` has sparsity ``s_0 + slope · b``, the arithmetic progression of ATP (Huang et al.,
    ICML 2025, arXiv 2502.14770); all units of a block share it. The budget's projection finds
    ``s_0``, and clips what leaves ``[0, 1]`` or the bounds.

    Args:
        slope: Sparsity that each block has more than the one before it.
    """

    units: ClassVar[tuple[str, ...]] = ("weights", "width", "heads", "experts")
    needs_text: ClassVar[bool] = False

    slope: float = 0.007

    def __post_init__(self) -> None:
        if not -1 <= self.slope <= 1:
            raise ConfigError(f"slope must lie in [-1, 1], not {self.slope}")

    def propose(self, problem: AllocationProblem) -> np.ndarray:
        """Return the ramp."""
        depths = np.array([unit.block for unit in problem.layout])
        return problem.target + self.slope * depths
