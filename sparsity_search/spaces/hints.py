"""Hints: the loss of each level of each gene, predicted before a search. Numbers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Hint:
    """The losses that one sensitivity predicts for the levels of a search space.

    A hint ignores interactions between genes. A searcher may use it as advice; measurements
    decide.

    Attributes:
        name: Name of the sensitivity, e.g. ``"fisher"``.
        lower: Least level of each gene, ``(n_genes,)`` int64.
        losses: Loss of each gene at each of its levels from ``lower`` on, ``(n_levels,)``
            float64 each.
    """

    name: str
    lower: np.ndarray
    losses: tuple[np.ndarray, ...]

    def of_genes(self, candidate: Sequence[int]) -> np.ndarray:
        """Return the loss predicted for each gene at a candidate's levels, ``(n_genes,)``."""
        rows = np.array(candidate) - self.lower
        return np.array([losses[row] for losses, row in zip(self.losses, rows, strict=True)])

    def loss(self, candidate: Sequence[int]) -> float:
        """Return the loss predicted for a candidate: the sum over its genes."""
        return float(self.of_genes(candidate).sum())
