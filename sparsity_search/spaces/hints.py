"""What is known of genes' levels before a search: a predicted loss for each. Numbers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Hint:
    """The losses that one sensitivity predicts for the levels of a search space.

    A hint says nothing of how genes act together: a searcher takes it as advice, and what is
    measured decides.

    Attributes:
        name: Of the sensitivity, e.g. ``"fisher"``.
        lower: The least level of each gene, ``(n_genes,)`` int64.
        losses: For each gene the loss at each of its levels from ``lower`` on, ``(n_levels,)``
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
