"""Gauss–Newton steps of the profile on the divergence of the pruned model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np
from scipy.interpolate import PchipInterpolator  # type: ignore[import-untyped]
from torch import Tensor

from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.interfaces.allocator import Allocation, AllocationProblem, Allocator
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.interfaces.units import ALL_UNITS
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.divergence import Divergence
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import SparsityProfile, from_counts
from sparsity_search.pruning.patterns import groups_of
from sparsity_search.registry import ALLOCATORS, PRUNERS, plugin_field
from sparsity_search.solvers.decisions import Options
from sparsity_search.solvers.greedy import trimmed
from sparsity_search.solvers.lagrangian import lagrangian
from sparsity_search.spaces.choices import n_of_m, tie_counts
from sparsity_search.spaces.level_budget import LevelBudget
from sparsity_search.spaces.tables import build_table
from sparsity_search.supernet.build import SupernetPlan, build
from sparsity_search.supernet.switch import Supernet, Switch

#: Levels of a unit at which the divergence is predicted; between them it is interpolated.
_LINEARISED = 5
#: Sparsity between levels: they cost a byte a weight in all where masks nest, else a copy each.
_FINE, _COARSE = 0.01, 0.05


@dataclass(frozen=True, kw_only=True)
class GaussNewtonAllocator(Allocator):
    """Moves a profile by gradients of ``KL(dense ‖ pruned)``, taken where it stands.

    Each step predicts what every level of every unit changes, all others as they are: the
    gradient of the divergence along the change of weights, and half its Fisher information. The
    budgeted minimum of the sum within a trust region is the next profile; a step that does not
    lower the divergence on its text is taken back, and the region halved. Unlike sensitivities of
    the dense model, gradients of the pruned one know what the other units have lost already.

    The method is this project's own; second order as in Fisher pruning (Theis et al., arXiv
    1801.05787, section 2.2), trust region as in Nocedal and Wright, Numerical Optimization,
    chapter 4.

    Attributes:
        pruner: Removes the items. A pruner that changes the weights it keeps needs memory for
            each level.
        start: Allocator of the profile that is moved.
        stages: How many times steps are made, each time on a supernet around the last result:
            what the blocks before a unit put out, and so what it loses, follows the profile.
        steps: How many steps a stage; each costs about six forward passes of the text.
        reach: How far a step may change a unit's sparsity, at first.
        spacing: Sparsity between two levels of a unit; by default 0.01, or 0.05 with a pruner
            that changes weights.
        sequences: Sequences of the calibration text that are used, at most.
        length: Tokens of each, at most.
        positions: How many positions of each tell the second order.
        seed: Of the labels drawn, and of ties among the pruner's scores.
    """

    units: ClassVar[tuple[str, ...]] = ALL_UNITS

    pruner: Pruner = plugin_field(PRUNERS, "wanda")
    start: Allocator = plugin_field(ALLOCATORS, "uniform")
    stages: int = 1
    steps: int = 4
    reach: float = 0.1
    spacing: float | None = None
    sequences: int = 8
    length: int = 512
    positions: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("stages", "steps", "sequences", "length", "positions"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("reach", "spacing"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ConfigError(f"{name} must lie in (0, 1], not {value}")

    def propose(self, problem: AllocationProblem) -> Allocation:
        """Return the profile of least divergence, with the divergences on the way as a note.

        Raises:
            ConfigError: A unit is not made of linear layers.
            InfeasibleBudgetError: No profile within the bounds meets the budget.
        """
        subject, tokens = problem.subject, problem.tokens
        budget, bounds = problem.budget, problem.bounds
        found = self.start.allocate(subject, tokens, budget, bounds)
        notes = []
        for _ in range(self.stages):
            found, values = self._stage(subject, tokens, found, budget, bounds)
            told = " → ".join(f"{value:.4g}" for value in values)
            notes.append(f"KL on calibration text, from the start on: {told} nats a token")
        return Allocation(found, notes=tuple(notes))

    def _stage(
        self,
        subject: PrunableModel,
        tokens: Tensor,
        start: SparsityProfile,
        budget: Budget,
        bounds: Bounds,
    ) -> tuple[SparsityProfile, list[float]]:
        """Return what steps from a profile find, on a supernet around it, and the divergences."""
        layout = start.layout
        grid = self._grid(start, budget, bounds)
        reach = grid.reach(layout, self.reach)
        grid = grid.within(self.steps * reach)
        text = tokens[: self.sequences, : self.length]
        divergence = Divergence(subject, text, self.positions, self.seed)
        plan = SupernetPlan(
            pruner=self.pruner,
            tables=grid.tables,
            centre=from_counts(layout, grid.counts(grid.start)),
            seed=self.seed,
        )
        supernet = build(subject, tokens, plan)
        descent = _Descent(supernet, divergence, grid, budget.n_removed(layout))
        levels, values = descent.run(self.steps, reach)
        found = from_counts(layout, grid.counts(levels))
        if not grid.final:
            found = budget.project(layout, np.array(found.sparsities), bounds)
        return found, values

    def _grid(self, start: SparsityProfile, budget: Budget, bounds: Bounds) -> _Grid:
        groups = groups_of(self.pruner)
        if groups is None:
            spacing = self.spacing or (_COARSE if self.pruner.updates else _FINE)
            return _spaced(start.layout, bounds, start, spacing)
        return _legal(start, bounds, budget, str(groups))


class _Window(NamedTuple):
    """Levels of one unit about its present one, and what going there is predicted to change.

    Attributes:
        levels: ``(n,)`` int64, increasing.
        losses: Change of the divergence in nats a token, ``(n,)``.
    """

    levels: np.ndarray
    losses: np.ndarray

    def within(self, level: int, reach: int) -> _Window:
        """Return the part at most ``reach`` levels from ``level``."""
        near = np.abs(self.levels - level) <= reach
        return _Window(self.levels[near], self.losses[near])


@dataclass(frozen=True, eq=False)
class _Grid:
    """The counts that units can have; levels are positions in tables, ``(n_units,)`` int64.

    Attributes:
        tables: Counts of each unit, increasing.
        start: Levels of the profile that is moved.
        final: Whether counts are kept as they are: they are a pattern's.
    """

    tables: Sequence[tuple[int, ...]]
    start: np.ndarray
    final: bool = False

    def counts(self, levels: np.ndarray) -> np.ndarray:
        """Return the count of each unit, ``(n_units,)`` int64."""
        return np.array([table[level] for table, level in zip(self.tables, levels, strict=True)])

    def reach(self, layout: Layout, sparsity: float) -> np.ndarray:
        """Return how many levels of each unit are a change of its sparsity, at least 1."""
        pairs = zip(self.tables, layout.counts, strict=True)
        apart = [(t[-1] - t[0]) / max(1, len(t) - 1) / count for t, count in pairs]
        found = np.rint(sparsity / np.maximum(apart, 1e-9))
        return np.asarray(np.clip(found, 1, max(map(len, self.tables))), dtype=np.int64)

    def within(self, far: np.ndarray) -> _Grid:
        """Return the part at most ``far`` levels of each unit from the start."""
        first = np.maximum(self.start - far, 0)
        known = zip(self.tables, first, self.start + far + 1, strict=True)
        tables = [table[low:high] for table, low, high in known]
        return replace(self, tables=tables, start=self.start - first)


@dataclass(frozen=True, eq=False)
class _Descent:
    """The steps on one supernet.

    Attributes:
        supernet: Holds every level.
        divergence: What goes down.
        grid: Where the profile can go.
        n_removed: Weights to remove, at least.
    """

    supernet: Supernet
    divergence: Divergence
    grid: _Grid
    n_removed: int

    def run(self, steps: int, reach: np.ndarray) -> tuple[np.ndarray, list[float]]:
        """Return the best levels, and the divergence at the start and after each step.

        Args:
            steps: How many, at most.
            reach: How many levels of each unit the first one may go.
        """
        levels = self.grid.start
        with self.supernet.resident() as switch:
            switch.to(self._profile(levels))
            best, windows = self._linearised(switch, levels, reach)
            values = [best]
            for step in range(1, steps + 1):
                proposed = self._solved(levels, windows, reach)
                if (proposed == levels).all():
                    break
                switch.to(self._profile(proposed))
                if step == steps:
                    value, found = self.divergence.value(), windows
                else:
                    value, found = self._linearised(switch, proposed, reach)
                values.append(value)
                if value < best:
                    best, levels, windows = value, proposed, found
                else:  # half of what was really moved, or the same would be proposed again
                    reach = np.minimum(reach, np.abs(proposed - levels).max()) // 2
        return levels, values

    def _linearised(
        self, switch: Switch, levels: np.ndarray, reach: np.ndarray
    ) -> tuple[float, list[_Window]]:
        """Return the divergence, and its predicted changes by unit."""
        value, recordings = self.divergence.recorded()
        windows = []
        known = zip(self._layout, levels, reach, self.grid.tables, strict=True)
        for unit, level, far, counts in known:
            near = _near(int(level), int(far), len(counts))
            changes = (switch.change(unit.name, counts[at]) for at in near)
            losses = [self.divergence.change(unit.name, c, recordings) for c in changes]
            if not np.isfinite(losses).all():
                raise NumericalError(f"{unit.name}: its gradients are not finite")
            between = np.arange(near[0], near[-1] + 1)
            curve = PchipInterpolator(near, losses)(between) if len(near) > 1 else losses
            windows.append(_Window(between, np.asarray(curve)))
        return value, windows

    def _solved(self, levels: np.ndarray, windows: list[_Window], reach: np.ndarray) -> np.ndarray:
        """Return the levels of the least predicted divergence within reach."""
        about = zip(windows, levels.tolist(), reach.tolist(), strict=True)
        near = [window.within(level, far) for window, level, far in about]
        counts = [np.array(t)[w.levels] for t, w in zip(self.grid.tables, near, strict=True)]
        weights = [c * unit.cost for c, unit in zip(counts, self._layout, strict=True)]
        options = Options(
            self._layout,
            tuple((i,) for i in range(len(near))),
            tuple(c[:, None] for c in counts),
            tuple(weights),
            least=self.n_removed,
            greatest=max(self.n_removed, sum(int(w[-1]) for w in weights)),
        )
        losses = [window.losses for window in near]
        chosen = lagrangian(options, losses).levels
        if self.grid.final:
            chosen = trimmed(options, losses, chosen)
        return np.array([w.levels[at] for w, at in zip(near, chosen, strict=True)])

    def _profile(self, levels: np.ndarray) -> SparsityProfile:
        return from_counts(self._layout, self.grid.counts(levels))

    @property
    def _layout(self) -> Layout:
        return self.supernet.subject.layout


def level_tables(
    layout: Layout, bounds: Bounds, centre: SparsityProfile, spacing: float
) -> list[tuple[int, ...]]:
    """Return counts of each unit: its bounds, and steps of ``spacing`` of it from the centre."""
    found = []
    limits = zip(layout, bounds.lower, bounds.upper, centre.removed, strict=True)
    for unit, low, high, middle in limits:
        step = max(1.0, spacing * unit.count)
        below, above = (middle - low) // step, (high - middle) // step
        points = middle + step * np.arange(-below, above + 1)
        found.append(tuple(sorted({int(low), *np.rint(points).astype(int).tolist(), int(high)})))
    return found


def _spaced(layout: Layout, bounds: Bounds, start: SparsityProfile, spacing: float) -> _Grid:
    tables = level_tables(layout, bounds, start, spacing)
    pairs = zip(tables, start.removed, strict=True)
    return _Grid(tables, np.array([table.index(count) for table, count in pairs]))


def _legal(profile: SparsityProfile, bounds: Bounds, budget: Budget, pattern: str) -> _Grid:
    """Return the counts that a pattern allows, and those of them nearest to a profile.

    Raises:
        ConfigError: A unit is no whole number of groups.
        InfeasibleBudgetError: No profile of such counts within the bounds meets the budget.
    """
    layout = profile.layout
    units = [(i,) for i in range(len(layout))]
    rows = tie_counts(layout, bounds, units, n_of_m(layout, pattern))
    known = LevelBudget.of(build_table(layout, units, rows), budget)
    tables = [tuple(counts[:, 0].tolist()) for counts in known.table.rows]
    start = known.dither(np.array(profile.removed) * layout.costs)
    return _Grid(tables, start, final=True)


def _near(level: int, reach: int, n_levels: int) -> np.ndarray:
    """Return a level and some on both sides of it up to ``reach``, increasing."""
    steps = np.rint(np.linspace(-reach, reach, _LINEARISED)).astype(np.int64)
    return np.unique(np.clip(level + steps, 0, n_levels - 1))
