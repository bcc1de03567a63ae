"""The solvers' problem: a multiple-choice knapsack of groups of tied units, and its rules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from sparsity_search.errors import (
    ConfigError,
    InfeasibleBudgetError,
    UnknownNameError,
    show_value,
    suggest_name,
)
from sparsity_search.profiles.budget import Bounds, Budget, explain_zeros
from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.profiles.scores import Scores
from sparsity_search.spaces.choices import Choices, list_pattern_counts, tie_counts
from sparsity_search.spaces.tables import DecisionTable, build_table
from sparsity_search.utils.expressions import Expression

#: Least and greatest sparsity of all units together whose whole role matches an expression.
Limits = tuple[tuple[str, tuple[float, float]], ...]

#: Steps that the whole model is divided into, at most: they bound the time and memory of the
#: dynamic programme.
MAX_STEPS = 2**17
#: Finest grid of the integer programme, as a fraction of a unit: with ten times as many levels
#: the solver needs minutes to prove an optimum that is hardly better.
_COARSE = 0.04


@dataclass(frozen=True, kw_only=True)
class SolverRules:
    """Rules for the allowed profiles, besides budget and bounds.

    Attributes:
        tied: Attributes of units; units that agree in all of them share one sparsity.
        step: Distance of the levels of a unit, as a fraction of the smallest group.
        pattern: ``N:M`` or ``*:M``, which restricts the counts to those it allows.
        limits: Sparsity limits of several units together, see `Limits`.

    Raises:
        ConfigError: A rule is not legal.
    """

    tied: tuple[str, ...] = ("name",)
    step: float = 0.01
    pattern: str | None = None
    limits: Limits = ()

    def __post_init__(self) -> None:
        known = [field.name for field in fields(Unit)]
        for name in self.tied:
            if name not in known:
                raise ConfigError(f"tied: no unit has {name!r}: {suggest_name(str(name), known)}")
        if not self.tied or not 0 < self.step <= 1:
            raise ConfigError("tied must name an attribute of units, and step lie in (0, 1]")
        for role, (low, high) in self.limits:
            if not 0 <= low <= high <= 1:
                raise ConfigError(f"limits of {role!r} must be 0 <= LOW <= HIGH <= 1")
            Expression(role, "limits")

    def groups(self, layout: Layout) -> tuple[tuple[int, ...], ...]:
        """Return the positions of the units of each group."""
        found: dict[tuple[object, ...], list[int]] = {}
        for i, unit in enumerate(layout):
            found.setdefault(tuple(getattr(unit, name) for name in self.tied), []).append(i)
        return tuple(map(tuple, found.values()))

    def equal_steps(self, layout: Layout) -> bool:
        """Whether units can lose any number of weights and only the total is limited."""
        return not self.limits and self.pattern is None and bool((layout.costs == 1).all())


@dataclass(frozen=True, eq=False)
class Knapsack:
    """A multiple-choice knapsack: one level of each group, and a range for the total weights.

    Attributes:
        table: The levels of each group, with the weights that they remove. Counts are
            fractional if levels have equal steps.
        least: Fewest weights to remove in all.
        greatest: Most weights to remove in all.
        equal: Whether levels have equal steps.
        fixed: Whether levels cannot be adjusted by single weights, since their counts are
            structures or patterns.
    """

    table: DecisionTable
    least: int
    greatest: int
    equal: bool = False
    fixed: bool = False

    @property
    def steps(self) -> list[int]:
        """Weights between neighbouring levels of each group; ``[1]`` if no group has several."""
        return [int(step) for saved in self.table.saved for step in np.diff(saved)] or [1]

    def losses(self, scores: Scores) -> tuple[np.ndarray, ...]:
        """Return the loss of each level, ``(n_levels,)`` for each group."""
        return tuple(
            np.sum([scores.curves[i](c) for i, c in zip(group, counts.T, strict=True)], axis=0)
            for group, counts in zip(self.table.groups, self.table.rows, strict=True)
        )


def pose_steps(layout: Layout, budget: Budget, bounds: Bounds, rules: SolverRules) -> Knapsack:
    """Return the knapsack of single weights in equal steps, from the lower bounds on.

    The weights to remove are rounded down to whole steps.
    """
    groups = rules.groups(layout)
    step = _find_common_step(layout, groups, rules.step)
    counts, weights = [], []
    for group in map(list, groups):
        low, high = bounds.lower[group], bounds.upper[group]
        grid = np.arange(low.sum(), high.sum() + 1, step, dtype=np.int64)
        weights.append(grid)
        counts.append(_share_counts(grid, low, high, layout.counts[group]))
    table = DecisionTable(layout, groups, tuple(counts), tuple(weights))
    base = int(bounds.lower.sum())
    most = sum((len(grid) - 1) * step for grid in weights)
    total = base + min((budget.n_removed(layout) - base) // step * step, most)
    return Knapsack(table, total, total, equal=True)


def pose_counts(layout: Layout, budget: Budget, bounds: Bounds, rules: SolverRules) -> Knapsack:
    """Return the knapsack of whole counts: of structures, of patterns, or of a grid of weights.

    With a pattern, the total is at least the budget, as in search spaces (see `level_budget`),
    and exceeds it by less than one step. Otherwise it is at most the budget, and less than the
    smallest step below it: `Budget.project` closes the gap as far as whole structures can.

    Raises:
        InfeasibleBudgetError: The levels do not reach the budget, or a unit has no level.
    """
    groups = rules.groups(layout)
    choices = (
        list_pattern_counts(layout, rules.pattern)
        if rules.pattern
        else _build_grid(layout, bounds, rules.step)
    )
    table = build_table(layout, groups, tie_counts(layout, bounds, groups, choices))
    target = budget.n_removed(layout)
    check_reach(layout, target, *table.range)
    fixed = rules.pattern is not None or bool((layout.costs > 1).any())
    knapsack = Knapsack(table, target, target, fixed=fixed)
    if rules.pattern:
        return replace(knapsack, greatest=target + max(knapsack.steps) - 1)
    return replace(knapsack, least=target - min(knapsack.steps) + 1)


def check_reach(layout: Layout, target: int, low: int, high: int) -> None:
    """Check that ``target`` weights lie in the reachable range ``low`` to ``high``.

    Raises:
        InfeasibleBudgetError: They do not; the message names the range.
    """
    if not low <= target <= high:
        total = layout.n_weights
        raise InfeasibleBudgetError(
            f"sparsity {target / total:.6g} is out of reach: the allowed counts and limits give "
            f"{low / total:.6g} to {high / total:.6g} ({low} to {high} of {total} weights)"
            + (explain_zeros(layout) if target < low else "")
        )


def match_role(layout: Layout, role: str) -> np.ndarray:
    """Return a mask of the units whose whole role matches an expression, ``(n_units,)`` bool.

    Raises:
        UnknownNameError: No role matches.
    """
    expression = Expression(role, "limits")
    found = np.array([expression.matches(unit.role) for unit in layout])
    if not found.any():
        roles = {unit.role for unit in layout}
        raise UnknownNameError(f"limits: no role matches {role!r}: {suggest_name(role, roles)}")
    return found


def parse_limits(value: Mapping[str, Sequence[float]] | Limits) -> Limits:
    """Return limits as a tuple from a mapping of role expressions to two sparsities.

    Raises:
        ConfigError: ``value`` is not such a mapping.
    """
    try:
        pairs = dict(value).items()
        return tuple((str(role), (float(low), float(high))) for role, (low, high) in pairs)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"limits must map roles to [LOW, HIGH], not {show_value(value)}"
        ) from error


def _find_common_step(layout: Layout, groups: Sequence[Sequence[int]], step: float) -> int:
    """Return a step in weights, preferring a nearby divisor of all groups' sizes."""
    sizes = [int(layout.counts[list(group)].sum()) for group in groups]
    wanted = max(1, int(step * min(sizes)), math.ceil(sum(sizes) / MAX_STEPS))
    near = np.arange(wanted, wanted // 2, -1)
    divisors = near[math.gcd(*sizes) % near == 0]
    return int(divisors[0]) if len(divisors) else wanted


def _share_counts(
    grid: np.ndarray, low: np.ndarray, high: np.ndarray, sizes: np.ndarray
) -> np.ndarray:
    """Return counts of units of one sparsity that add up to ``grid``, ``(len(grid), n_units)``.

    A unit whose bounds exclude that sparsity lies at the bound.
    """
    knots = np.unique(np.concatenate([low / sizes, high / sizes]))
    at_knots = np.clip(knots[:, None] * sizes, low, high)
    totals, first = np.unique(at_knots.sum(axis=1), return_index=True)
    return np.stack([np.interp(grid, totals, c) for c in at_knots[first].T], axis=1)


def _build_grid(layout: Layout, bounds: Bounds, step: float) -> Choices:
    """Return counts of each unit, including its bounds, about ``step`` of its size apart."""
    apart = max(step, _COARSE)
    found = []
    for unit, low, high in zip(layout, bounds.lower, bounds.upper, strict=True):
        n = min(int(high - low), math.ceil((high - low) / max(1.0, apart * unit.count)))
        points = {round(float(at)) for at in np.linspace(low, high, n + 1)}
        found.append(tuple(sorted(points)))
    return tuple(found)
