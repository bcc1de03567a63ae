"""A ramp: sparsity rises with depth by one step a block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from sparsity_search.errors import ConfigError
from sparsity_search.interfaces.allocator import Allocator
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.profile import SparsityProfile

#: Kinds of units of which a part can be removed.
_KINDS = ("weights", "width", "heads", "experts")


@dataclass(frozen=True, kw_only=True)
class RampAllocator(Allocator):
    """Sparsity rises by one step a block (ATP).

    Block ``b`` has sparsity ``s_0 + slope · b``, the arithmetic progression of ATP (Huang et al.,
    ICML 2025, arXiv 2502.14770); all units of a block share it. The budget's projection finds
    ``s_0``, and clips what leaves ``[0, 1]`` or the bounds.

    Args:
        slope: Sparsity that each block has more than the one before it.
    """

    needs_text: ClassVar[bool] = False

    slope: float = 0.007

    def __post_init__(self) -> None:
        if not -1 <= self.slope <= 1:
            raise ConfigError(f"slope must lie in [-1, 1], not {self.slope}")

    def allocate(
        self, subject: PrunableModel, tokens: Tensor, budget: Budget, bounds: Bounds
    ) -> SparsityProfile:
        """Return the ramp; neither ``tokens`` nor weights are read.

        Raises:
            ConfigError: The units go as a whole.
            InfeasibleBudgetError: No profile within the bounds meets the budget.
        """
        del tokens
        layout = subject.layout
        if subject.units not in _KINDS:
            raise ConfigError(f"a ramp needs units {', '.join(_KINDS)}, not {subject.units}")
        depths = np.array([unit.block for unit in layout])
        return budget.project(layout, budget.target + self.slope * depths, bounds)
