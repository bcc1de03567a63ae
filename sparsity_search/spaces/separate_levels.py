"""Levels under a budget for each role: a space that is made of one space for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np

from sparsity_search.errors import InfeasibleBudgetError
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.spaces.levels import Candidate, LevelLimits, SearchSpace, as_candidate
from sparsity_search.spaces.prices import Prices

#: Function that returns the space of some units from their layout, budget, bounds and prices.
Build = Callable[[Layout, Budget, Bounds, Prices | None], SearchSpace]

#: Digits after the point of a number of weights; the others are rounding errors.
_DIGITS = 3


@dataclass(frozen=True, eq=False, kw_only=True)
class SeparateLevels(SearchSpace):
    """A space in which each role has a budget of its own: the same fraction of its own weights.

    The genes of each role form a space, its part. A candidate is legal if its levels are legal in
    every part, so draws, roundings and switches keep the budget of each role. In this way EvoPress
    drops as many attentions as feed-forwards (``evo_drop_search.py`` of its released code).

    Args:
        parts: The space of each role, over the units of that role in their order.
    """

    parts: tuple[SearchSpace, ...]

    @property
    def facts(self) -> Mapping[str, Any]:
        """The digests of the parts."""
        return {"parts": [part.digest for part in self.parts]}

    @cached_property
    def base(self) -> SparsityProfile:
        """The profile of level 0 everywhere."""
        return self.profile(self.origin)

    @cached_property
    def limits(self) -> LevelLimits:
        """Least and greatest level of each gene."""
        return LevelLimits(
            lower=self._join([part.limits.lower for part in self.parts]),
            upper=self._join([part.limits.upper for part in self.parts]),
        )

    def meets(self, levels: np.ndarray) -> bool:
        """Whether the levels of every part meet its budget."""
        return all(part.meets(levels[own]) for part, own in self._parts)

    def gene_counts(self, gene: int, level: int) -> np.ndarray:
        """Return the counts of a gene's units at a level within its limits, ``(n_units,)``."""
        index, place = self._owners[gene]
        return self.parts[index].gene_counts(place, level)

    def gene_patterns(self, gene: int, level: int) -> Sequence[str]:
        """Return the patterns of a gene's units at a level; ``""`` for units without one."""
        index, place = self._owners[gene]
        return self.parts[index].gene_patterns(place, level)

    def nearest(self, profile: SparsityProfile) -> Candidate:
        """Return the candidate nearest to a profile, in each part for itself."""
        levels = [part.nearest(_restrict(profile, part.layout)) for part in self.parts]
        return as_candidate(self._join([np.array(each) for each in levels]))

    def balance(self, levels: np.ndarray) -> Candidate:
        """Return the candidate nearest to real levels, ``(n_genes,)``, in each part for itself."""
        wanted = np.asarray(levels, dtype=np.float64)
        found = [np.array(part.balance(wanted[own])) for part, own in self._parts]
        return as_candidate(self._join(found))

    def switch(
        self, candidate: Candidate, rng: np.random.Generator, stride: int, genes: Sequence[int]
    ) -> Candidate | None:
        """Move ``stride`` levels between two of ``genes`` in one part, drawn by its genes.

        Returns:
            The new candidate, or None if no part allows such a move.
        """
        levels = np.array(candidate)
        pools: dict[int, list[int]] = {}  # genes of each part, the first drawn first
        for gene in rng.permutation(genes):
            index, place = self._owners[int(gene)]
            pools.setdefault(index, []).append(place)
        for index, pool in pools.items():
            part, own = self._parts[index]
            moved = part.switch(as_candidate(levels[own]), rng, stride, sorted(pool))
            if moved is not None:
                levels[own] = moved
                return as_candidate(levels)
        return None

    def refined(self, centre: SparsityProfile) -> Self:
        """Return the space around a profile of this space, with half the step in every part."""
        parts = tuple(part.refined(_restrict(centre, part.layout)) for part in self.parts)
        return replace(self, parts=parts, hints=())

    @cached_property
    def _own(self) -> list[np.ndarray]:
        """The genes of each part, increasing."""
        roles = np.array([self.layout[units[0]].role for units in self.genes])
        return [np.flatnonzero(roles == part.layout[0].role) for part in self.parts]

    @cached_property
    def _parts(self) -> list[tuple[SearchSpace, np.ndarray]]:
        """The parts and their genes."""
        return list(zip(self.parts, self._own, strict=True))

    @cached_property
    def _owners(self) -> dict[int, tuple[int, int]]:
        """The index of the part that holds each gene, and the gene's place in it."""
        return {int(g): (p, i) for p, own in enumerate(self._own) for i, g in enumerate(own)}

    def _join(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """Return the integers of each part's genes as ``(n_genes,)`` int64."""
        joined = np.zeros(self.n_genes, dtype=np.int64)
        for own, each in zip(self._own, values, strict=True):
            joined[own] = each
        return joined


def build_separately(
    layout: Layout,
    budget: Budget,
    bounds: Bounds,
    prices: Prices | None,
    reach: int,
    build: Build,
) -> SeparateLevels:
    """Return the space in which each role of a layout has its own budget.

    Each role removes, or saves, at least its share, rounded up to a whole weight.

    Args:
        layout: The units.
        budget: The fraction that each role removes or saves.
        bounds: Limits in items.
        prices: Savings of the units, counted instead of their weights.
        reach: Most levels up or down.
        build: Function that builds the space of one role.

    Raises:
        InfeasibleBudgetError: No profile of a role meets its budget; the message names the role.
    """
    parts, genes = [], []
    for role in dict.fromkeys(unit.role for unit in layout):
        units = [i for i, unit in enumerate(layout) if unit.role == role]
        own = Layout([layout[i] for i in units])
        share = Budget(math.ceil(round(budget.target * own.n_weights, _DIGITS)) / own.n_weights)
        within = Bounds(lower=bounds.lower[units], upper=bounds.upper[units])
        try:
            part = build(own, share, within, None if prices is None else prices.of_units(units))
        except InfeasibleBudgetError as error:
            raise InfeasibleBudgetError(f"{role}: {error}") from error
        parts.append(part)
        genes += [tuple(units[i] for i in gene) for gene in part.genes]
    return SeparateLevels(
        layout=layout,
        budget=budget,
        bounds=bounds,
        genes=tuple(sorted(genes)),
        reach=reach,
        prices=prices,
        parts=tuple(parts),
    )


def _restrict(profile: SparsityProfile, layout: Layout) -> SparsityProfile:
    """Return the part of a profile on some of its units."""
    places = [profile.layout.position(unit.name) for unit in layout]
    removed = tuple(profile.removed[i] for i in places)
    return SparsityProfile(
        layout, removed, tuple(profile.patterns[i] for i in places if profile.patterns)
    )
