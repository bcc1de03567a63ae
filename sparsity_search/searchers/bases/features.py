"""What a predictor knows of a candidate: its levels, and sums of them. Numbers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sparsity_search.spaces.hints import Hint
from sparsity_search.spaces.space import Space


@dataclass(frozen=True, eq=False)
class Features:
    """Features of candidates of one space, in blocks of columns that belong together.

    Depth is a gene's place among those of its role, so that any space has it.

    Args:
        space: Where the candidates lie.
    """

    space: Space

    def blocks(self, levels: np.ndarray) -> dict[str, np.ndarray]:
        """Return the blocks by name, ``(n, n_columns)`` float64 each.

        ``levels``, their mean by role and by fifth of the depth, and the mean square of the
        differences between neighbours of one role; for each hint the sums of the losses and of
        their roots, and the losses' sums by role and by third of the depth.

        Args:
            levels: ``(n, n_genes)``, whole or real.
        """
        levels = np.asarray(levels, dtype=np.float64)
        found = {
            "levels": levels,
            "roles": levels @ _means(self._by_role),
            "fifths": levels @ _means(self._by_depth(5)),
            "roughness": self._roughness(levels),
        }
        for hint in self.space.hints:
            losses = losses_at(hint, levels)
            sums = [losses.sum(axis=1), np.sqrt(np.maximum(losses, 0)).sum(axis=1)]
            found[f"{hint.name}.sums"] = np.stack(sums, axis=1)
            found[f"{hint.name}.roles"] = losses @ self._by_role
            found[f"{hint.name}.thirds"] = losses @ self._by_depth(3)
        return found

    @property
    def _by_role(self) -> np.ndarray:
        """Which genes have each role, ``(n_genes, n_roles)`` of 0 and 1."""
        names = list(dict.fromkeys(self.space.roles))
        return np.array([[role == name for name in names] for role in self.space.roles], float)

    def _by_depth(self, parts: int) -> np.ndarray:
        """Which genes lie in each part of the depth, ``(n_genes, parts)`` of 0 and 1."""
        part = np.array([int(parts * place) for place in depths(self.space.roles)])
        return np.asarray(part[:, None] == np.arange(parts), dtype=np.float64)

    def _roughness(self, levels: np.ndarray) -> np.ndarray:
        pairs = [pair for genes in by_role(self.space.roles) for pair in pairwise(genes)]
        if not pairs:
            return np.zeros((len(levels), 1))
        left, right = np.array(pairs).T
        squares = np.square(levels[:, right] - levels[:, left])
        return np.asarray(squares.mean(axis=1, keepdims=True))


def by_role(roles: Sequence[str]) -> list[list[int]]:
    """Return the genes of each role, in order.

    >>> by_role(("q", "up", "q"))
    [[0, 2], [1]]
    """
    found: dict[str, list[int]] = {}
    for gene, role in enumerate(roles):
        found.setdefault(role, []).append(gene)
    return list(found.values())


def depths(roles: Sequence[str]) -> list[float]:
    """Return how deep each gene lies among those of its role, in ``[0, 1)``.

    >>> depths(("q", "up", "q"))
    [0.0, 0.0, 0.5]
    """
    place = {g: i / len(genes) for genes in by_role(roles) for i, g in enumerate(genes)}
    return [place[gene] for gene in range(len(roles))]


def losses_at(hint: Hint, levels: np.ndarray) -> np.ndarray:
    """Return the losses that a hint predicts for the genes, ``(n, n_genes)``.

    Between levels they are interpolated, beyond the last one they stay.
    """
    found = np.empty_like(levels)
    for gene, (low, losses) in enumerate(zip(hint.lower, hint.losses, strict=True)):
        found[:, gene] = np.interp(levels[:, gene], low + np.arange(len(losses)), losses)
    return found


def _means(members: np.ndarray) -> np.ndarray:
    """Return weights that average over the members of each column; none gives 0."""
    return np.asarray(members / np.maximum(members.sum(axis=0), 1))
