"""The base class of allocators that measure the loss of each unit and solve for the budget."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from sparsity_search.errors import ConfigError
from sparsity_search.interfaces.allocator import Allocation, AllocationProblem, Allocator
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.interfaces.sensitivity import Sensitivity
from sparsity_search.interfaces.units import ALL_UNITS
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import SparsityProfile, from_counts
from sparsity_search.profiles.scores import Scores, build_count_tables
from sparsity_search.pruning.patterns import groups_of
from sparsity_search.registry import PRUNERS, SENSITIVITIES, converted_field, plugin_field
from sparsity_search.solvers.decisions import Knapsack, SolverRules, pose_counts, pose_steps
from sparsity_search.solvers.greedy import trim_steps
from sparsity_search.solvers.pairs import compute_pair_loss, move_coordinates
from sparsity_search.spaces.choices import list_pattern_counts


def _parse_names(value: str | Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


@dataclass(frozen=True, eq=False)
class Solution:
    """The counts of a solver.

    Attributes:
        counts: Count of each unit, ``(n_units,)``; floats where the levels lie between integers.
        final: Whether the counts are kept as they are: they are a pattern's, or within limits.
        notes: Lines for people.
    """

    counts: np.ndarray
    final: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ScoredAllocator(Allocator):
    """Measures what each unit loses at some levels, and solves for the budget.

    Attributes:
        sensitivity: Measures the losses.
        pruner: Removes the items while the losses are measured.
        levels: Sparsities that are measured; between them curves are interpolated. A pruner with
            an N:M pattern has its legal counts instead.
        tied: Units that agree in these attributes share one sparsity.
        step: Distance of the levels of a unit, as a fraction of the smallest group of tied units.
        use_pairs: Whether what two units lose together counts too, if it was measured.
        shrink: Pairs are multiplied by it, in [0, 1]: those from few samples cancel by chance, and
            a solver finds such cancellations.
        seed: Of the measurement.
    """

    units: ClassVar[tuple[str, ...]] = ALL_UNITS

    sensitivity: Sensitivity = plugin_field(SENSITIVITIES, "fisher")
    pruner: Pruner = plugin_field(PRUNERS, "wanda")
    levels: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
    tied: tuple[str, ...] = converted_field(_parse_names, ("name",))
    step: float = 0.01
    use_pairs: bool = False
    shrink: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.levels or not all(0 < level <= 1 for level in self.levels):
            raise ConfigError(f"levels must be sparsities in (0, 1], not {self.levels}")
        if not 0 <= self.shrink <= 1:
            raise ConfigError(f"shrink must lie in [0, 1], not {self.shrink}")
        self.rules  # noqa: B018  refuses settings that are not legal

    @property
    def rules(self) -> SolverRules:
        """Which profiles the settings allow."""
        return SolverRules(tied=self.tied, step=self.step, pattern=self._pattern)

    @abstractmethod
    def choose(self, knapsack: Knapsack, losses: Sequence[np.ndarray]) -> np.ndarray:
        """Return a level of each group, ``(n_groups,)`` int64, of little loss in all."""

    def propose(self, problem: AllocationProblem) -> Allocation:
        """Return the profile of least predicted loss, with the predicted losses as a note.

        Raises:
            InfeasibleBudgetError: No profile within bounds and limits meets the budget.
            NumericalError: A loss is not finite.
        """
        self.check(problem.layout, problem.budget, problem.bounds)
        scores = self.measure(problem.subject, problem.tokens)
        return self.solve(scores, problem.budget, problem.bounds)

    def measure(self, subject: PrunableModel, tokens: Tensor) -> Scores:
        """Return the losses that `solve` needs, for any budget.

        Raises:
            ConfigError: The pruner or the sensitivity is not for the model's kind of units.
        """
        self.check_units(subject.units)
        counts = self.tables(subject.layout)
        return self.sensitivity.measure(subject, tokens, self.pruner, counts, seed=self.seed)

    def tables(self, layout: Layout) -> tuple[tuple[int, ...], ...]:
        """Return the counts of each unit that are measured, increasing."""
        if self._pattern is None:
            return build_count_tables(layout, self.levels)
        legal = zip(layout, list_pattern_counts(layout, self._pattern), strict=True)
        # a unit with more zeros than the pattern has nothing to choose
        return tuple(tuple(c for c in counts if c > u.zeros) or (u.zeros,) for u, counts in legal)

    def check(self, layout: Layout, budget: Budget, bounds: Bounds) -> None:
        """Check before any work that some allowed profile meets the budget.

        Raises:
            InfeasibleBudgetError: None does; the message names the reachable range.
            ConfigError: The units do not fit the pattern.
        """
        budget.check(layout, bounds)
        if self._pattern is not None:
            pose_counts(layout, budget, bounds, self.rules)

    def solve(self, scores: Scores, budget: Budget, bounds: Bounds) -> Allocation:
        """Return the profile of least predicted loss, without the model; losses are a note.

        Raises:
            InfeasibleBudgetError: No profile within bounds and limits meets the budget.
        """
        layout = scores.layout
        self.check(layout, budget, bounds)
        solution = self.solve_counts(scores, budget, bounds)
        uniform = budget.uniform(layout, bounds)
        least = self.predict(scores, uniform)
        if solution.final:
            profile = from_counts(layout, np.rint(solution.counts).astype(np.int64))
        else:
            profile = budget.project(layout, solution.counts / layout.counts, bounds)
            # where curves are equal or constant, many profiles are best
            if least <= self.predict(scores, profile) * (1 + 1e-9):
                profile = uniform
        loss = self.predict(scores, profile)
        note = f"predicted loss {loss:.6g}; of the uniform profile {least:.6g}"
        return Allocation(profile, notes=(note, *solution.notes))

    def solve_counts(self, scores: Scores, budget: Budget, bounds: Bounds) -> Solution:
        """Return the counts of least loss, the budget met up to a step."""
        rules = self.rules
        pose = pose_steps if rules.equal_steps(scores.layout) else pose_counts
        knapsack = pose(scores.layout, budget, bounds, rules)
        losses = knapsack.losses(scores)
        levels = self.choose(knapsack, losses)
        if self._paired(scores):
            levels = move_coordinates(knapsack, losses, scores, levels, self.shrink)
        if rules.pattern is not None:
            levels = trim_steps(knapsack, losses, levels)
        notes = ("no pairs were measured",) if self.use_pairs and scores.pairs is None else ()
        return Solution(knapsack.table.at(levels), final=rules.pattern is not None, notes=notes)

    def predict(self, scores: Scores, profile: SparsityProfile) -> float:
        """Return the predicted loss of a profile, with pairs where they are used."""
        loss = scores.loss(profile)
        if self._paired(scores):
            loss += self.shrink * compute_pair_loss(scores, np.array(profile.removed))
        return loss

    def _paired(self, scores: Scores) -> bool:
        return self.use_pairs and scores.pairs is not None

    @property
    def _pattern(self) -> str | None:
        """The pruner's pattern as text, if its masks come in groups."""
        groups = groups_of(self.pruner)
        return None if groups is None else str(groups)
