"""The profile of least predicted loss: a multiple-choice knapsack, solved exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sparsity_search.allocators.bases.scored import ScoredAllocator, Solution
from sparsity_search.errors import ConfigError
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.scores import Scores
from sparsity_search.registry import converted_field
from sparsity_search.solvers.decisions import (
    Knapsack,
    Limits,
    SolverRules,
    parse_limits,
    pose_counts,
)
from sparsity_search.solvers.dynamic import solve_dynamic
from sparsity_search.solvers.integer import IntegerProgramme, ProgrammeSolution


@dataclass(frozen=True, kw_only=True)
class KnapsackAllocator(ScoredAllocator):
    """Least sum of measured losses within the budget, by dynamic or integer programming.

    ``min Σ_u loss_u(c_u)`` subject to ``Σ_u c_u = budget``: losses of units are taken to add up
    (Xu et al., ICCV 2023, arXiv 2308.10438). Single weights go in equal steps, where a dynamic
    programme is exact; structures, N:M patterns and ``limits`` need a mixed-integer programme.

    Attributes:
        limits: Least and greatest sparsity of all units together whose role matches a regular
            expression: ``{"q|k": [0.2, 0.5]}``.
        time_limit: Seconds after which the integer programme stops without a proof of its optimum.
    """

    limits: Limits = converted_field(parse_limits, ())
    time_limit: float = 60.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.time_limit > 0:
            raise ConfigError(f"time_limit must be positive, not {self.time_limit}")
        if self.limits and self.use_pairs:
            raise ConfigError("use_pairs cannot be used with limits")

    @property
    def rules(self) -> SolverRules:
        """Which profiles the settings allow."""
        return replace(super().rules, limits=self.limits)

    def check(self, layout: Layout, budget: Budget, bounds: Bounds) -> None:
        """Check before any work that some profile within the limits meets the budget.

        Raises:
            InfeasibleBudgetError: None does; the message names the reachable range.
            UnknownNameError: A limit matches no role.
        """
        super().check(layout, budget, bounds)
        if self.limits:
            self._programme(layout, budget, bounds).check(budget.n_removed(layout))

    def choose(self, knapsack: Knapsack, losses: Sequence[np.ndarray]) -> np.ndarray:
        """Return the levels of least loss, ``(n_groups,)`` int64."""
        if knapsack.equal:
            return solve_dynamic(knapsack, losses)
        everywhere = Bounds.of(knapsack.table.layout)
        return IntegerProgramme(knapsack, everywhere).solve(losses, self.time_limit).levels

    def solve_counts(self, scores: Scores, budget: Budget, bounds: Bounds) -> Solution:
        """Return the counts of least loss; within limits, if there are any."""
        if not self.limits:
            return super().solve_counts(scores, budget, bounds)
        programme = self._programme(scores.layout, budget, bounds)
        choice = programme.solve(programme.knapsack.losses(scores), self.time_limit)
        return Solution(choice.counts, final=True, notes=_notes(choice))

    def _programme(self, layout: Layout, budget: Budget, bounds: Bounds) -> IntegerProgramme:
        knapsack = pose_counts(layout, budget, bounds, self.rules)
        return IntegerProgramme(knapsack, bounds, self.rules.limits)


def _notes(choice: ProgrammeSolution) -> tuple[str, ...]:
    if not choice.gap:
        return ()
    return (f"stopped by time_limit within {choice.gap:.2g} of the optimum",)
