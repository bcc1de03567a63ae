"""Unequal costs and several budgets at once: a mixed-integer programme, solved by HiGHS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import Bounds as Interval  # type: ignore[import-untyped]
from scipy.optimize import LinearConstraint, OptimizeResult, milp
from scipy.sparse import csr_array  # type: ignore[import-untyped]

from sparsity_search.errors import ConfigError, InfeasibleBudgetError
from sparsity_search.profiles.budget import Bounds, water_fill
from sparsity_search.solvers.decisions import Knapsack, Limits, check_reach, match_role
from sparsity_search.solvers.lagrangian import solve_lagrangian
from sparsity_search.spaces.tables import DecisionTable

#: Status codes of `scipy.optimize.milp`.
_OPTIMAL, _TIME_OUT, _INFEASIBLE = 0, 1, 2


@dataclass(frozen=True, eq=False)
class ProgrammeSolution:
    """The solution of an integer programme.

    Attributes:
        levels: A level of each group, ``(n_groups,)`` int64.
        counts: Counts of the units, ``(n_units,)`` int64.
        gap: Greatest possible improvement of the loss, as a fraction; 0 for an optimum.
    """

    levels: np.ndarray
    counts: np.ndarray
    gap: float


@dataclass(frozen=True, eq=False)
class IntegerProgramme:
    """A programme with one binary variable for each level and constraints on total weights.

    Exactly one variable of each group is 1. Under limits `Budget.project` cannot close the last
    weights. So each *cell*, the units within the same limits, has one more integer variable:
    weights in addition to the levels, fewer than a step of the cell, at the loss that a weight
    costs without limits.

    Attributes:
        knapsack: A knapsack of whole counts.
        bounds: Limits of each unit.
        limits: Limits of several units together.
    """

    knapsack: Knapsack
    bounds: Bounds
    limits: Limits = ()

    @property
    def table(self) -> DecisionTable:
        """The levels of each group."""
        return self.knapsack.table

    def check(self, target: int) -> None:
        """Check that ``target`` weights can be removed within the limits.

        Raises:
            InfeasibleBudgetError: They cannot; the message names the reachable range.
            UnknownNameError: A limit matches no role.
        """
        costs = self.table.layout.costs
        ranges = (self.bounds.lower * costs, self.bounds.upper * costs)
        for (role, _), inside, (least, most) in zip(
            self.limits, self._inside, self._amounts, strict=True
        ):
            low, high = (int(weights[inside].sum()) for weights in ranges)
            if low > most or high < least:
                raise InfeasibleBudgetError(
                    f"limits of {role!r} ask for {least} to {most} weights: out of reach, its "
                    f"bounds allow {low} to {high}"
                )
        removed = self._of(np.ones(len(costs), dtype=bool))
        ends = []
        for sign in (1, -1):
            found = self._solve(sign * removed / self._unit, [], 60.0)
            if found.x is None:
                raise InfeasibleBudgetError("no profile is within all limits at once")
            ends.append(round(float(removed @ np.rint(found.x))))
        check_reach(self.table.layout, target, *ends)

    def solve(self, losses: Sequence[np.ndarray], seconds: float) -> ProgrammeSolution:
        """Return the choice of least loss.

        Args:
            losses: Loss of each level, ``(n_levels,)`` for each group.
            seconds: Time limit, after which the solver stops without a proof.

        Raises:
            InfeasibleBudgetError: No choice meets the budget and the limits.
            ConfigError: No choice was found in time.
        """
        price = solve_lagrangian(self.knapsack, losses).price
        flat = np.concatenate([*losses, np.full(len(self._cells), max(price, 0.0))])
        # HiGHS has absolute tolerances: bring losses to the order of 1
        flat /= float(np.mean(np.concatenate(losses))) or 1.0
        low, high = self.knapsack.least, self.knapsack.greatest
        # the levels of a coarse grid may all miss a narrow window
        wide = min(low, high - max(self.knapsack.steps) + 1)
        for least in [high] if self._cells else [low, wide]:
            row = self._row(np.ones(len(self.table.layout), dtype=bool), least, high)
            found = self._solve(flat, [row], seconds)
            if found.status != _INFEASIBLE:
                break
        else:
            raise InfeasibleBudgetError(
                f"{high} weights of {self.table.layout.n_weights} are out of reach: no allowed "
                "counts within the limits remove as many"
            )
        if found.x is None or found.status not in (_OPTIMAL, _TIME_OUT):
            raise ConfigError(f"no profile found within {seconds:g} s: raise time_limit")
        return self._chosen(found)

    def _solve(
        self, losses: np.ndarray, rows: list[LinearConstraint], seconds: float
    ) -> OptimizeResult:
        one = csr_array(
            (np.ones(len(self._group)), (self._group, np.arange(len(self._group)))),
            shape=(len(self.table.groups), len(losses)),
        )
        return milp(
            losses,
            integrality=np.ones(len(losses)),
            bounds=Interval(0, np.concatenate([np.ones(len(self._group)), self._spare])),
            constraints=[LinearConstraint(one, 1, 1), *self._limit_rows, *rows],
            options={"mip_rel_gap": 0.0, "time_limit": seconds},
        )

    def _chosen(self, found: OptimizeResult) -> ProgrammeSolution:
        """Return the solver's result as counts: those of the levels, with each cell closed."""
        cuts = np.flatnonzero(np.diff(self._group)) + 1
        n_levels = len(self._group)
        levels = np.array([part.argmax() for part in np.split(found.x[:n_levels], cuts)])
        counts = np.rint(self.table.at(levels)).astype(np.int64)
        for cell, extra in zip(self._cells, found.x[n_levels:], strict=True):
            total = int(counts[cell].sum()) + round(float(extra))
            within = Bounds(lower=self.bounds.lower[cell], upper=self.bounds.upper[cell])
            sizes = self.table.layout.counts[cell]
            counts[cell] = water_fill(counts[cell], sizes, within, np.ones_like(sizes), total)
        return ProgrammeSolution(
            levels, counts, 0.0 if found.status == _OPTIMAL else float(found.mip_gap)
        )

    @cached_property
    def _group(self) -> np.ndarray:
        """Group of each level."""
        sizes = [len(grid) for grid in self.table.saved]
        return np.repeat(np.arange(len(sizes)), sizes)

    @cached_property
    def _unit(self) -> float:
        """Mean weights of a level, which scale rows to the order of 1."""
        return max(1.0, float(np.mean(np.concatenate(self.table.saved))))

    @cached_property
    def _inside(self) -> list[np.ndarray]:
        """Mask of the units of each limit, ``(n_units,)`` bool each."""
        return [match_role(self.table.layout, role) for role, _ in self.limits]

    @cached_property
    def _amounts(self) -> list[tuple[int, int]]:
        """Least and most weights of each limit."""
        found, exact = [], 1e-9  # as in `Bounds.of`
        sizes = self.table.layout.counts * self.table.layout.costs
        for inside, (_, (low, high)) in zip(self._inside, self.limits, strict=True):
            total = int(sizes[inside].sum())
            found.append((int(np.ceil(low * total - exact)), int(np.floor(high * total + exact))))
        return found

    @cached_property
    def _cells(self) -> list[np.ndarray]:
        """Masks of units within the same limits, ``(n_units,)`` bool; none if levels are fixed."""
        if self.knapsack.fixed or not self.limits:
            return []
        keys = np.stack(self._inside, axis=1)
        return [(keys == key).all(axis=1) for key in np.unique(keys, axis=0)]

    @cached_property
    def _spare(self) -> np.ndarray:
        """Most additional weights of each cell: fewer than its greatest step."""
        found = []
        for cell in self._cells:
            inside = [any(cell[list(group)]) for group in self.table.groups]
            grids = [w for w, yes in zip(self.table.saved, inside, strict=True) if yes]
            found.append(max((int(np.diff(w).max()) for w in grids if len(w) > 1), default=1) - 1)
        return np.array(found, dtype=np.float64)

    def _of(self, units: np.ndarray) -> np.ndarray:
        """Return the weights that each variable removes from some units, ``(n_variables,)``."""
        costs = self.table.layout.costs * units
        pairs = zip(self.table.groups, self.table.rows, strict=True)
        found = [counts @ costs[list(group)] for group, counts in pairs]
        return np.concatenate([*found, [float((cell & units).any()) for cell in self._cells]])

    def _row(self, units: np.ndarray, least: int, most: int) -> LinearConstraint:
        unit = self._unit
        return LinearConstraint(self._of(units)[None] / unit, least / unit, most / unit)

    @cached_property
    def _limit_rows(self) -> list[LinearConstraint]:
        """The limits, and the room of each cell."""
        limits = zip(self._inside, self._amounts, strict=True)
        rooms = [(cell, (0, int(self.bounds.upper[cell].sum()))) for cell in self._cells]
        return [self._row(units, least, most) for units, (least, most) in [*limits, *rooms]]
