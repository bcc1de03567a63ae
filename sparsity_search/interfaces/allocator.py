"""The interface of an allocator: a profile in one shot."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from torch import Tensor

from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.interfaces.units import SupportsUnits
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import SparsityProfile


@dataclass(frozen=True, eq=False)
class AllocationProblem:
    """The question to an allocator: how much of each unit of a model goes.

    Attributes:
        subject: The dense model.
        tokens: Calibration text, ``(n_sequences, length)`` int64; empty if the allocator does
            not need it.
        budget: The global budget.
        bounds: Fewest and most items to remove from each unit.
    """

    subject: PrunableModel
    tokens: Tensor
    budget: Budget
    bounds: Bounds

    @property
    def layout(self) -> Layout:
        """The units, in forward order."""
        return self.subject.layout

    @property
    def target(self) -> float:
        """The global sparsity."""
        return self.budget.target

    @property
    def n_removed(self) -> int:
        """Weights to remove in all units together."""
        return self.budget.n_removed(self.layout)

    @property
    def uniform(self) -> SparsityProfile:
        """The profile nearest to equal sparsity in all units."""
        return self.budget.uniform(self.layout, self.bounds)

    def project(self, sparsities: np.ndarray) -> SparsityProfile:
        """Return the profile nearest to ``sparsities`` that meets budget and bounds exactly.

        Args:
            sparsities: Of each unit, ``(n_units,)``; any finite numbers, see `Budget.project`.
        """
        return self.budget.project(self.layout, sparsities, self.bounds)


@dataclass(frozen=True, eq=False)
class Allocation:
    """A profile, and what else its allocator has computed.

    Attributes:
        profile: The profile.
        arrays: Stored next to it, by unit name, e.g. a rate for each row.
        notes: Lines for people.
    """

    profile: SparsityProfile
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Allocator(SupportsUnits, ABC):
    """Base class of allocators: methods that find a sparsity profile in one shot.

    An allocator is a value, its hyper-parameters. It is asked once for a profile of one model at
    one budget, and keeps nothing. Callers use `allocate` or `detailed`; a method implements
    `propose`. The base class does what all methods have in common::

        allocate, detailed    called by jobs, and by allocators that start from another
          │
          ├─ check_units      the kind of units suits the method, and the plugins in its fields
          ├─ Budget.check     some profile within the bounds meets the budget
          ├─ propose          the method; this step alone may run the model
          ├─ Budget.project   exact counts, if the method proposes sparsities
          ▼
        Allocation            the profile, arrays by unit name, notes for people

    A method proposes one of two things:

    * The sparsity that it wants for each unit, ``(n_units,)``. Any finite numbers will do: the
      projection adds one constant to all, clips them to the bounds, and rounds, so that the
      budget is met to the weight. Most methods do this, and are a few lines.
    * An `Allocation`, which is passed on as it is. A method does this if its counts are exact
      already (whole blocks, a pattern's legal counts), or if it has more to say than a profile.

    Rules, which `sparsity_search.testing.allocator.AllocatorContract` tests:

    * A plugin is a frozen keyword-only dataclass, and every field has a default. Equal settings
      are equal and hashable, and print as one line.
    * The profile meets the budget, to the weight or to within one structure, at every target
      between 0 and 1, also if some units are excluded and blocks differ in size.
    * It keeps within the bounds of each unit, also where they leave a single profile.
    * Items that are zero in the dense model count as removed.
    * Units that the method is not for, and a budget out of reach of the bounds, are errors
      before the model runs.
    * The model's weights are as before afterwards, to the bit, and no hook is left.
    * Equal arguments give equal profiles. The global random state is neither read nor changed:
      random numbers come from a field ``seed``, by `sparsity_search.utils.random`.

    The fields ``pruner`` and ``seed``, if a method has them, are filled with those of the run
    unless the user sets them: a method that prunes for its own use does it with ``pruner``.

    Attributes:
        units: The kinds of units that the method is for. The first is what it removes unless the
            user says otherwise.
        needs_text: Whether `propose` reads the calibration text.
        experimental: Why the method is not recommended, with a figure, if it loses to a simpler
            one in the project's own tables. It is shown by ``ls``, and warned of once.
    """

    needs_text: ClassVar[bool] = True
    experimental: ClassVar[str] = ""

    @property
    def supernet(self) -> tuple[Pruner, int] | None:
        """Pruner of a supernet that it builds, and the levels of each unit; None for none."""
        return None

    @abstractmethod
    def propose(self, problem: AllocationProblem) -> np.ndarray | Allocation:
        """Return the sparsity wanted for each unit, ``(n_units,)``, or an exact allocation.

        Args:
            problem: Model, text, budget and bounds; some profile within them meets the budget.

        Raises:
            ConfigError: The model does not fit the settings.
            NumericalError: A weight, an input or a loss is not finite.
        """

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
            ConfigError: The method, or a plugin that it uses, is not for units of this kind.
            InfeasibleBudgetError: No profile within the bounds meets the budget.
            NumericalError: A weight, an input or a loss is not finite.
        """
        return self.detailed(subject, tokens, budget, bounds).profile

    def detailed(
        self, subject: PrunableModel, tokens: Tensor, budget: Budget, bounds: Bounds
    ) -> Allocation:
        """Return the profile of `allocate`, with the arrays and notes of the method."""
        self.check_units(subject.units)
        budget.check(subject.layout, bounds)
        problem = AllocationProblem(subject, tokens, budget, bounds)
        proposed = self.propose(problem)
        if isinstance(proposed, Allocation):
            return proposed
        return Allocation(problem.project(proposed))
