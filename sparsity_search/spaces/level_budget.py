"""The budget of levels whose steps differ: N:M counts, patterns and structures.

Where steps differ a total can rarely be met exactly. The budget's rule here, for a vector of
levels:

1. it saves at least the target, never less;
2. no single step can be taken back: one level less of any gene would fall below the target.

So the surplus is smaller than the smallest step that could be taken back, and a search cannot
gain by saving less than it was asked for. With equal steps all legal vectors have equal totals.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from sparsity_search.errors import InfeasibleBudgetError
from sparsity_search.profiles.budget import Budget
from sparsity_search.spaces.tables import DecisionTable
from sparsity_search.utils.bisect import bisect

#: Steps, by depth and by role, of a sequence that covers the unit interval evenly: inverses of
#: the golden ratio and of the plastic number.
_EVEN = (0.6180339887498949, 0.7548776662466927)


@dataclass(frozen=True, eq=False)
class LevelBudget:
    """Which levels of a table meet a budget by the rule above, and how others come to meet it.

    A vector of levels is ``(n_genes,)`` int64, each from 0 to the table's `top`; *real* levels
    are floats between them.

    Attributes:
        table: The levels of each gene.
        target: To save in all: weights, or what the budget counts.
        order: Evenly spread over roles and depth, ``(n_genes,)`` floats in [0, 1); decides ties.
    """

    table: DecisionTable
    target: int
    order: np.ndarray

    @classmethod
    def of(cls, table: DecisionTable, budget: Budget) -> LevelBudget:
        """Return the budget over a table.

        Genes are ranked so that those taken first are spread evenly over roles and over depth.

        Raises:
            InfeasibleBudgetError: No levels meet the budget; the message names what they allow.
        """
        layout = table.layout
        roles = [layout[group[0]].role for group in table.groups]
        names = list(dict.fromkeys(roles))
        places = [(roles[:i].count(role), names.index(role)) for i, role in enumerate(roles)]
        order = (np.array(places) + 0.5) @ np.array(_EVEN) % 1.0
        target = budget.n_removed(layout)
        least, most = table.range
        if not least <= target <= most:
            raise InfeasibleBudgetError(
                f"{target} weights to remove are out of reach: "
                f"the legal counts allow {least} to {most}"
            )
        return cls(table, target, order)

    @cached_property
    def _padded(self) -> np.ndarray:
        """What each level saves by gene and level; behind the last level it is repeated."""
        width = int(self.table.top.max()) + 2
        saved = [np.pad(s, (0, width - len(s)), mode="edge") for s in self.table.saved]
        return np.stack(saved)

    @cached_property
    def _genes(self) -> np.ndarray:
        return np.arange(len(self.table.groups))

    def surplus(self, levels: np.ndarray) -> int:
        """Return what levels save over the target."""
        return int(self._padded[self._genes, levels].sum()) - self.target

    def back(self, levels: np.ndarray) -> np.ndarray:
        """Return what one level less gives back, ``(n_genes,)``; more than all at level 0."""
        steps = self._padded[self._genes, levels] - self._padded[self._genes, levels - 1]
        return np.where(levels > 0, steps, np.iinfo(np.int64).max)

    def on(self, levels: np.ndarray) -> np.ndarray:
        """Return what one level more saves, ``(n_genes,)``; 0 at the greatest level."""
        return np.asarray(
            self._padded[self._genes, levels + 1] - self._padded[self._genes, levels]
        )

    def legal(self, levels: np.ndarray) -> bool:
        """Whether levels meet the budget by the rule above."""
        return 0 <= self.surplus(levels) < int(self.back(levels).min())

    def interpolate(self, saved: np.ndarray) -> np.ndarray:
        """Return the real levels at which each gene saves ``saved``, ``(n_genes,)``."""
        pairs = zip(saved, self.table.saved, strict=True)
        return np.array([np.interp(s, known, np.arange(len(known))) for s, known in pairs])

    def settle(self, wanted: np.ndarray) -> np.ndarray:
        """Return legal levels near real ones, by largest remainder; legal ones give themselves.

        One common shift makes the real levels save the target exactly.
        """
        exact = self._shift(wanted)
        return self._round(exact, np.floor(exact) - exact)

    def dither(self, saved: np.ndarray) -> np.ndarray:
        """Return legal levels at which each gene saves about ``saved``, ``(n_genes,)``.

        Rounding is dithered: of genes alike, as many go up as their remainder says, spread evenly.
        """
        exact = self._shift(self.interpolate(saved))
        return self._round(exact, np.floor(exact) - exact + self.order)

    def _round(self, exact: np.ndarray, ranks: np.ndarray) -> np.ndarray:
        """Round down, then up in order of ``ranks`` until the target is met.

        What is left over then is taken back, first where most was added.
        """
        levels = np.floor(exact).astype(np.int64)
        order = np.lexsort((self.order, ranks))
        for gene in order[(levels < self.table.top)[order]]:
            if self.surplus(levels) >= 0:
                break
            levels[gene] += 1
        while (fits := np.flatnonzero(self.back(levels) <= self.surplus(levels))).size:
            levels[fits[np.argmax((levels - exact)[fits])]] -= 1
        return np.asarray(levels)

    def repair(
        self, levels: np.ndarray, rng: np.random.Generator, among: np.ndarray, up: int, down: int
    ) -> np.ndarray:
        """Return levels after random single steps that make them legal, if steps can.

        A step is the more probable the nearer it is to the shortage or surplus.

        Args:
            levels: Levels after a gene went ``up`` and another ``down``; that one stays down,
                and the first is taken back last.
            rng: Draws the genes to move.
            among: The genes that may move.
            up: A gene.
            down: Another.
        """
        levels = levels.copy()
        while (missing := -self.surplus(levels)) > 0:
            on = np.where(among == down, 0, self.on(levels)[among])
            if not on.any():
                break
            levels[_draw(rng, among, on, missing)] += 1
        for kept in (up, None):
            while (surplus := self.surplus(levels)) > 0:
                back = self.back(levels)[among]
                fits = np.where((back <= surplus) & (among != kept), back, 0)
                if not fits.any():
                    break
                levels[_draw(rng, among, fits, surplus)] -= 1
        return levels

    def around(self, centre: np.ndarray, reach: int) -> tuple[LevelBudget, np.ndarray]:
        """Return the budget over at most ``reach`` levels around ``centre``, and its place."""
        table, place = self.table.around(centre, reach)
        return replace(self, table=table), place

    def _shift(self, wanted: np.ndarray) -> np.ndarray:
        """Return real levels, all shifted alike and clipped, that save the target."""

        def at(shift: float) -> np.ndarray:
            return np.asarray(np.clip(wanted + shift, 0, self.table.top))

        low = float(-wanted.max()) - 1.0
        high = float((self.table.top - wanted).max()) + 1.0
        return at(bisect(lambda shift: self._saved(at(shift)), self.target, low, high))

    def _saved(self, real: np.ndarray) -> float:
        levels = real.astype(np.int64)
        return float((self._padded[self._genes, levels] + (real - levels) * self.on(levels)).sum())


def _draw(rng: np.random.Generator, genes: np.ndarray, steps: np.ndarray, gap: int) -> int:
    """Return a gene whose step is not 0, the more probable the nearer it is to ``gap``."""
    fit = np.minimum(steps / gap, gap / np.maximum(steps, 1))
    return int(rng.choice(genes, p=fit / fit.sum()))


def check_saving(table: DecisionTable, budget: Budget, what: str) -> None:
    """Check that some levels of a table meet a budget of savings.

    Args:
        table: The levels.
        budget: Its target is a saving.
        what: Which part of the space limits the savings, for the message.

    Raises:
        InfeasibleBudgetError: None do; the message names the feasible range.
    """
    least, most = table.range
    if not least <= budget.n_removed(table.layout) <= most:
        total = table.layout.n_weights
        raise InfeasibleBudgetError(
            f"saving {budget.target} is out of reach: the {what} allow "
            f"{least / total:.6g} to {most / total:.6g}"
        )
