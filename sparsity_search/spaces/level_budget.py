"""The budget of levels whose steps differ: N:M counts, patterns and structures.

Where steps differ, a total can rarely be met exactly. A vector of levels is legal here if

1. it saves at least the target, and
2. no single step can be taken back: one level less of any gene would fall below the target.

So the surplus is smaller than the smallest step that could be taken back, and a search cannot
gain by saving less than the target. With equal steps all legal vectors have equal totals.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from sparsity_search.errors import InfeasibleBudgetError
from sparsity_search.profiles.budget import Budget, explain_zeros
from sparsity_search.spaces.tables import DecisionTable
from sparsity_search.utils.bisect import bisect

#: Steps, by depth and by role, of a sequence that covers the unit interval evenly: inverses of
#: the golden ratio and of the plastic number.
_EVEN = (0.6180339887498949, 0.7548776662466927)


@dataclass(frozen=True, eq=False)
class LevelBudget:
    """The budget rule above over the levels of a table, and ways to make levels legal.

    A vector of levels is ``(n_genes,)`` int64, each from 0 to the table's `top`; *real* levels
    are floats between them.

    Attributes:
        table: The levels of each gene.
        target: Total amount to save: weights, or the quantity that the budget counts.
        order: Rank of each gene, ``(n_genes,)`` floats in [0, 1), that decides ties. Ranks are
            spread evenly over roles and depth.
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
        """Saving by gene and level; behind a gene's last level its saving is repeated."""
        width = int(self.table.top.max()) + 2
        saved = [np.pad(s, (0, width - len(s)), mode="edge") for s in self.table.saved]
        return np.stack(saved)

    @cached_property
    def _genes(self) -> np.ndarray:
        return np.arange(len(self.table.groups))

    def surplus(self, levels: np.ndarray) -> int:
        """Return the savings of levels in excess of the target."""
        return int(self._padded[self._genes, levels].sum()) - self.target

    def back(self, levels: np.ndarray) -> np.ndarray:
        """Return the saving that one level less loses, ``(n_genes,)``; huge at level 0."""
        steps = self._padded[self._genes, levels] - self._padded[self._genes, levels - 1]
        return np.where(levels > 0, steps, np.iinfo(np.int64).max)

    def on(self, levels: np.ndarray) -> np.ndarray:
        """Return the saving that one level more adds, ``(n_genes,)``; 0 at the greatest level."""
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
        """Return legal levels near real ones, by largest remainder.

        One common shift first makes the real levels save the target exactly. Legal levels are
        returned unchanged.
        """
        exact = self._shift(wanted)
        return self._round(exact, np.floor(exact) - exact)

    def dither(self, saved: np.ndarray) -> np.ndarray:
        """Return legal levels at which each gene saves about ``saved``, ``(n_genes,)``.

        Rounding is dithered: among similar genes, a fraction equal to their remainder is rounded
        up, spread evenly.
        """
        exact = self._shift(self.interpolate(saved))
        return self._round(exact, np.floor(exact) - exact + self.order)

    def _round(self, exact: np.ndarray, ranks: np.ndarray) -> np.ndarray:
        """Round down, then up in order of ``ranks`` until the target is met.

        Any surplus is then taken back, first from the genes that were raised most.
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
        """Return levels after random single steps that make them legal, if that is possible.

        A step is more probable the nearer its size is to the shortage or surplus.

        Args:
            levels: Levels after gene ``up`` rose and gene ``down`` fell, ``(n_genes,)``.
            rng: Generator that draws the genes to move.
            among: The genes that may move.
            up: The gene that rose; it is lowered only as a last resort.
            down: The gene that fell; it is not raised again.
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
        """Return the budget over ``reach`` levels around ``centre``, and its levels there."""
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
    """Return a gene with a non-zero step; steps near ``gap`` are more probable."""
    fit = np.minimum(steps / gap, gap / np.maximum(steps, 1))
    return int(rng.choice(genes, p=fit / fit.sum()))


def check_saving(table: DecisionTable, budget: Budget, what: str) -> None:
    """Check that some levels of a table meet a budget of savings.

    Args:
        table: The levels.
        budget: The budget, whose target is a saving.
        what: Name of the part of the space that limits the savings, for the message.

    Raises:
        InfeasibleBudgetError: No levels meet it; the message names the feasible range.
    """
    least, most = table.range
    target = budget.n_removed(table.layout)
    if not least <= target <= most:
        total = table.layout.n_weights
        raise InfeasibleBudgetError(
            f"saving {budget.target} is out of reach: the {what} allow "
            f"{least / total:.6g} to {most / total:.6g}"
            # zeros exclude every option of a unit that has more of them
            + (explain_zeros(table.layout) if target < least or not most else "")
        )
