"""Levels of genes whose steps differ: N:M choices and structures.

Where steps differ a total can rarely be met exactly. The budget's rule here, for a vector of
levels:

1. it removes at least the target, never less;
2. no single step can be taken back: one level less of any gene would fall below the target.

So the surplus is smaller than the smallest step that could be taken back, and a search cannot
gain by removing less than it was asked for. With equal steps all legal vectors have equal totals.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sparsity_search.errors import InfeasibleBudgetError
from sparsity_search.utils.bisect import bisect


@dataclass(frozen=True, eq=False)
class LevelTables:
    """What every level of every gene removes.

    A vector of levels is ``(n_genes,)`` int64, each from 0 to the gene's `top`; *real* levels
    are floats between them.

    Attributes:
        rows: Counts of the gene's units at each level, ``(n_levels, n_units)``, for each gene.
        weights: Weights that each level removes, ``(n_levels,)`` and increasing, for each gene.
        target: Weights to remove in all.
        order: Evenly spread over roles and depth, ``(n_genes,)`` floats in [0, 1); decides ties.
    """

    rows: tuple[np.ndarray, ...]
    weights: tuple[np.ndarray, ...]
    target: int
    order: np.ndarray

    @cached_property
    def top(self) -> np.ndarray:
        """The greatest level of each gene, ``(n_genes,)`` int64."""
        return np.array([len(weights) - 1 for weights in self.weights], dtype=np.int64)

    @cached_property
    def _padded(self) -> np.ndarray:
        """Weights by gene and level; behind the last level it is repeated."""
        width = int(self.top.max()) + 2
        return np.stack([np.pad(w, (0, width - len(w)), mode="edge") for w in self.weights])

    @cached_property
    def _genes(self) -> np.ndarray:
        return np.arange(len(self.rows))

    def removed(self, levels: np.ndarray) -> int:
        """Return the weights that levels remove in all."""
        return int(self._padded[self._genes, levels].sum())

    def surplus(self, levels: np.ndarray) -> int:
        """Return the weights that levels remove over the target."""
        return self.removed(levels) - self.target

    def back(self, levels: np.ndarray) -> np.ndarray:
        """Return what one level less gives back, ``(n_genes,)``; more than all at level 0."""
        steps = self._padded[self._genes, levels] - self._padded[self._genes, levels - 1]
        return np.where(levels > 0, steps, np.iinfo(np.int64).max)

    def on(self, levels: np.ndarray) -> np.ndarray:
        """Return what one level more removes, ``(n_genes,)``; 0 at the greatest level."""
        return np.asarray(
            self._padded[self._genes, levels + 1] - self._padded[self._genes, levels]
        )

    def legal(self, levels: np.ndarray) -> bool:
        """Whether levels meet the budget by the rule above."""
        return 0 <= self.surplus(levels) < int(self.back(levels).min())

    def check(self) -> None:
        """Check that some levels meet the budget.

        Raises:
            InfeasibleBudgetError: None do; the message names the feasible range.
        """
        least, most = self.removed(np.zeros_like(self.top)), self.removed(self.top)
        if not least <= self.target <= most:
            raise InfeasibleBudgetError(
                f"{self.target} weights to remove are out of reach: "
                f"the legal counts allow {least} to {most}"
            )

    def real(self, weights: np.ndarray) -> np.ndarray:
        """Return the real levels at which each gene removes ``weights``, ``(n_genes,)``."""
        pairs = zip(weights, self.weights, strict=True)
        return np.array([np.interp(w, known, np.arange(len(known))) for w, known in pairs])

    def settle(self, wanted: np.ndarray) -> np.ndarray:
        """Return legal levels near real ones, by largest remainder; legal ones give themselves.

        One common shift makes the real levels remove the target exactly.
        """
        exact = self._shifted(wanted)
        return self._rounded(exact, np.floor(exact) - exact)

    def uniform(self, weights: np.ndarray) -> np.ndarray:
        """Return legal levels that remove about ``weights`` of each gene.

        Rounding is dithered: of genes alike, as many go up as their remainder says, spread evenly.
        """
        exact = self._shifted(self.real(weights))
        return self._rounded(exact, np.floor(exact) - exact + self.order)

    def _rounded(self, exact: np.ndarray, ranks: np.ndarray) -> np.ndarray:
        """Round down, then up in order of ``ranks`` until the target is met.

        What is left over then is taken back, first where most was added.
        """
        levels = np.floor(exact).astype(np.int64)
        order = np.lexsort((self.order, ranks))
        for gene in order[(levels < self.top)[order]]:
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

        A step is the likelier the nearer it is to what is missing or left over.

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

    def around(self, centre: np.ndarray, reach: int) -> tuple[LevelTables, np.ndarray]:
        """Return the tables of at most ``reach`` levels about ``centre``, and its place there."""
        low, high = np.maximum(centre - reach, 0), np.minimum(centre + reach, self.top) + 1
        cut = [slice(int(a), int(b)) for a, b in zip(low, high, strict=True)]
        rows = tuple(rows[part] for rows, part in zip(self.rows, cut, strict=True))
        weights = tuple(known[part] for known, part in zip(self.weights, cut, strict=True))
        return LevelTables(rows, weights, self.target, self.order), centre - low

    def _shifted(self, wanted: np.ndarray) -> np.ndarray:
        """Return real levels, all shifted alike and clipped, that remove the target."""

        def at(shift: float) -> np.ndarray:
            return np.asarray(np.clip(wanted + shift, 0, self.top))

        low = float(-wanted.max()) - 1.0
        high = float((self.top - wanted).max()) + 1.0
        return at(bisect(lambda shift: self._removed(at(shift)), self.target, low, high))

    def _removed(self, real: np.ndarray) -> float:
        levels = real.astype(np.int64)
        return float((self._padded[self._genes, levels] + (real - levels) * self.on(levels)).sum())


def _draw(rng: np.random.Generator, genes: np.ndarray, steps: np.ndarray, gap: int) -> int:
    """Return one of the genes whose step is not 0, the likelier the nearer it is to ``gap``."""
    fit = np.minimum(steps / gap, gap / np.maximum(steps, 1))
    return int(rng.choice(genes, p=fit / fit.sum()))
