"""The interface of an allocator: a profile in one shot."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from sparsity_search.budget import Bounds, Budget
from sparsity_search.models.prunable import PrunableModel
from sparsity_search.profile import SparsityProfile


class Allocator(ABC):
    """Finds a profile from the dense model. Plugins are frozen keyword-only dataclasses.

    Attributes:
        needs_text: Whether `allocate` reads the calibration text.
        units: What the profile removes unless the user says otherwise.
    """

    units: ClassVar[str] = "weights"
    needs_text: ClassVar[bool] = True

    @abstractmethod
    def allocate(
        self, subject: PrunableModel, tokens: Tensor, budget: Budget, bounds: Bounds
    ) -> SparsityProfile:
        """Return a profile that meets ``budget`` within ``bounds`` exactly.

        Args:
            subject: The dense model; unchanged afterwards.
            tokens: Calibration text, ``(n_sequences, length)`` int64.
            budget: The global budget.
            bounds: Fewest and most items to remove from each unit.

        Raises:
            InfeasibleBudgetError: No profile within the bounds meets the budget.
        """
