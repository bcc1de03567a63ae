"""Features of a candidate for predictors: its levels, and sums of them. Numbers only."""

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

    Depth is the place of a gene among those of its role, so every space has it.

    Args:
        space: The candidates' space.
    """

    space: Space

    def blocks(self, levels: np.ndarray) -> dict[str, np.ndarray]:
        """Return the blocks by name, ``(n, n_columns)`` float64 each.

        The blocks are ``levels``, their means by role and by fifth of the depth, and the mean
        squared difference of neighbours of one role. For each hint they are the sum of its
        losses, the sum of their roots, and the sums of losses by role and by third of the depth.

        Args:
            levels: ``(n, n_genes)``, integer or real.
        """
        levels = np.asarray(levels, dtype=np.float64)
        blocks = {
            "levels": levels,
            "roles": levels @ _average(self._by_role),
            "fifths": levels @ _average(self._by_depth(5)),
            "roughness": self._roughness(levels),
        }
        for hint in self.space.hints:
            losses = interpolate_losses(hint, levels)
            sums = [losses.sum(axis=1), np.sqrt(np.maximum(losses, 0)).sum(axis=1)]
            blocks[f"{hint.name}.sums"] = np.stack(sums, axis=1)
            blocks[f"{hint.name}.roles"] = losses @ self._by_role
            blocks[f"{hint.name}.thirds"] = losses @ self._by_depth(3)
        return blocks

    @property
    def _by_role(self) -> np.ndarray:
        """Membership of genes in roles, ``(n_genes, n_roles)`` of 0 and 1."""
        names = list(dict.fromkeys(self.space.roles))
        return np.array([[role == name for name in names] for role in self.space.roles], float)

    def _by_depth(self, parts: int) -> np.ndarray:
        """Return the membership of genes in parts of the depth, ``(n_genes, parts)``."""
        part = np.array([int(parts * place) for place in measure_depths(self.space.roles)])
        return np.asarray(part[:, None] == np.arange(parts), dtype=np.float64)

    def _roughness(self, levels: np.ndarray) -> np.ndarray:
        pairs = [pair for genes in group_by_role(self.space.roles) for pair in pairwise(genes)]
        if not pairs:
            return np.zeros((len(levels), 1))
        left, right = np.array(pairs).T
        squares = np.square(levels[:, right] - levels[:, left])
        return np.asarray(squares.mean(axis=1, keepdims=True))


def group_by_role(roles: Sequence[str]) -> list[list[int]]:
    """Return the genes of each role, in order.

    >>> group_by_role(("q", "up", "q"))
    [[0, 2], [1]]
    """
    genes: dict[str, list[int]] = {}
    for gene, role in enumerate(roles):
        genes.setdefault(role, []).append(gene)
    return list(genes.values())


def measure_depths(roles: Sequence[str]) -> list[float]:
    """Return the depth of each gene among those of its role, in ``[0, 1)``.

    >>> measure_depths(("q", "up", "q"))
    [0.0, 0.0, 0.5]
    """
    place = {g: i / len(genes) for genes in group_by_role(roles) for i, g in enumerate(genes)}
    return [place[gene] for gene in range(len(roles))]


def interpolate_losses(hint: Hint, levels: np.ndarray) -> np.ndarray:
    """Return the losses that a hint predicts for the genes, ``(n, n_genes)``.

    They are linear between levels, and constant beyond the last one.
    """
    predicted = np.empty_like(levels)
    for gene, (low, losses) in enumerate(zip(hint.lower, hint.losses, strict=True)):
        predicted[:, gene] = np.interp(levels[:, gene], low + np.arange(len(losses)), losses)
    return predicted


def _average(members: np.ndarray) -> np.ndarray:
    """Return weights that average over the members of each column; none gives 0."""
    return np.asarray(members / np.maximum(members.sum(axis=0), 1))
