"""The interface of an allocator: a profile in one shot."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from torch import Tensor

from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.profile import SparsityProfile


@dataclass(frozen=True, eq=False)
class Allocation:
    """A profile, and what else its allocator found.

    Attributes:
        profile: The profile.
        arrays: What is kept beside it, by unit name, e.g. a rate for each row.
        notes: What there is to tell, for people.
    """

    profile: SparsityProfile
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Allocator(ABC):
    """Finds a profile from the dense model. Plugins are frozen keyword-only dataclasses.

    A plugin that prunes for its own use does so with its field ``pruner``, which the run's
    pruner fills unless the user names another.

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

    def detailed(
        self, subject: PrunableModel, tokens: Tensor, budget: Budget, bounds: Bounds
    ) -> Allocation:
        """Return what `allocate` does, with all else that the method finds."""
        return Allocation(self.allocate(subject, tokens, budget, bounds))
