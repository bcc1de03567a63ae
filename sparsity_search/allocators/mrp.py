"""MRP: weights go step by step from the block that has the fewest outliers left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sparsity_search.allocators.bases.wanda_scores import compute_unit_scores
from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.evidence.statistics import Statistic
from sparsity_search.interfaces.allocator import AllocationProblem, Allocator
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.walk import Visit, walk
from sparsity_search.profiles.budget import Bounds

#: Metrics → what they have to know about the inputs.
_METRICS = {"wanda": Statistic.NORM, "magnitude": Statistic.NONE}


@dataclass(frozen=True, kw_only=True)
class MRPAllocator(Allocator):
    """Prunes the most redundant block a little, again and again, until the target is met.

    Maximum redundancy pruning (Gao et al., arXiv 2503.18377). All blocks start at one low
    sparsity. Then the block of the highest non-outlier ratio *as it is pruned now* loses ``step``
    more of its weights, so that in the end all blocks have about the same redundancy left.
    Blocks that are equal, in ratio and sparsity, go together: equal scores give the uniform
    profile.

    The ratio here is the fraction of the weights still kept whose score is at most ``m`` times
    the block's mean score, in which removed weights count as zeros. It never rises when more is
    removed. (With the mean over kept weights alone it can: a block of light tails would be
    chosen until nothing is left of it.) Its units all lose the same fraction, those of least
    score. Scores stay those of the dense model's inputs; the paper measures the sparse model
    anew. Its step and M are in an appendix that was not at hand: the defaults here are OWL's M,
    and our own choices of start and step.

    Args:
        m: Outlier threshold as a multiple of the mean score.
        start: Sparsity of all blocks at first, as a fraction of the target.
        step: Sparsity that a block gains at a time.
        metric: Scores: ``wanda``, ``|W_ij| · rms(x_j)``, or ``magnitude``, ``|W_ij|``.
    """

    experimental: ClassVar[str] = (
        "perplexity at 70% 1.08 times that of uniform with SparseGPT, 0.99 times with Wanda "
        "(SmolLM2-135M)"
    )

    m: float = 5.0
    start: float = 0.5
    step: float = 0.01
    metric: str = "wanda"

    def __post_init__(self) -> None:
        if not self.m > 0:
            raise ConfigError(f"m must be positive, not {self.m}")
        if not 0 <= self.start <= 1:
            raise ConfigError(f"start must lie in 0 … 1, not {self.start}")
        if not 0 < self.step <= 1:
            raise ConfigError(f"step must be above 0 and at most 1, not {self.step}")
        if self.metric not in _METRICS:
            raise ConfigError(f"metric must be one of {', '.join(_METRICS)}, not {self.metric!r}")

    def propose(self, problem: AllocationProblem) -> np.ndarray:
        """Return sparsities from at most one pass of the text through the dense model.

        Raises:
            NumericalError: A weight or an input is not finite.
        """
        subject, layout, total = problem.subject, problem.layout, problem.n_removed
        first = self.start * total / layout.n_weights
        grid = np.minimum(np.arange(first, 1 + self.step, self.step), 1.0)
        tables = {
            visit.block: compute_redundancies(self._scores(subject, visit), grid, self.m)
            for visit in walk(subject, problem.tokens, _METRICS[self.metric], rewritten=False)
            if visit.units
        }
        _, block = np.unique([unit.block for unit in layout], return_inverse=True)
        sizes, lower, upper = (
            np.bincount(block, weights=counts)
            for counts in (layout.counts, problem.bounds.lower, problem.bounds.upper)
        )
        limits = Bounds(lower=lower, upper=upper)
        removed = descend(np.stack(list(tables.values())), grid, sizes, limits, total)
        return np.asarray((removed / sizes)[block])

    def _scores(self, subject: PrunableModel, visit: Visit) -> list[Tensor]:
        """Return the scores of each unit of a block, flat and rising, float32."""
        found = []
        for unit in visit.units:
            if self.metric == "wanda":
                scores = compute_unit_scores(subject, visit, unit.name)
            else:
                scores = subject.views[unit.name].read().float().abs().flatten()
            found.append(scores.sort().values)
        return found


def compute_redundancies(scores: Sequence[Tensor], grid: np.ndarray, m: float) -> np.ndarray:
    """Return a block's redundancy at each sparsity of a grid, ``(n_grid,)`` float64.

    The fraction of kept weights that are no outliers, see `MRPAllocator`; 0 where none is kept.

    Args:
        scores: Of each unit, rising, ``(n_weights,)`` float32.
        grid: Rising sparsities.
        m: Outlier threshold as a multiple of the block's mean score.

    Raises:
        NumericalError: Scores are not finite.

    >>> unit = torch.tensor([1.0, 1.0, 2.0, 8.0])  # means 3, 2.75, 2.5
    >>> compute_redundancies([unit], np.array([0.0, 0.25, 0.5]), m=1).round(3).tolist()
    [0.75, 0.667, 0.5]
    """
    size = sum(len(unit) for unit in scores)
    gone = [np.rint(grid * len(unit)).astype(np.int64) for unit in scores]
    kept_sums = sum(_sum_from(unit, counts) for unit, counts in zip(scores, gone, strict=True))
    limits = m * np.asarray(kept_sums) / size
    if not np.isfinite(limits).all():
        raise NumericalError("scores are not finite: the weights have NaN, Inf or huge entries")
    usual = np.zeros(len(grid))
    for unit, counts in zip(scores, gone, strict=True):
        thresholds = torch.from_numpy(limits).to(unit)
        below = torch.searchsorted(unit, thresholds, right=True).cpu().numpy()
        usual += np.maximum(below - counts, 0)
    return np.asarray(usual / np.maximum(size - sum(gone), 1))


def _sum_from(rising: Tensor, starts: np.ndarray) -> np.ndarray:
    """Return the sum of ``rising`` from each of some rising positions on, float64."""
    lengths = np.diff(starts, prepend=0, append=len(rising)).tolist()
    parts = [float(part.sum(dtype=torch.float64)) for part in torch.split(rising, lengths)]
    return np.asarray(np.cumsum(parts[:0:-1])[::-1])


def descend(
    tables: np.ndarray, grid: np.ndarray, sizes: np.ndarray, limits: Bounds, total: float
) -> np.ndarray:
    """Return the weights that each block loses when the most redundant goes first.

    Args:
        tables: Redundancy of each block at each sparsity, ``(n_blocks, n_grid)``.
        grid: Those sparsities, rising to 1, ``(n_grid,)``; all blocks start at the first.
        sizes: Weights of each block, ``(n_blocks,)``.
        limits: Fewest and most weights of each block to remove, ``(n_blocks,)``.
        total: Weights to remove.

    Returns:
        ``(n_blocks,)`` float64.
    """
    counts = np.clip(grid * sizes[:, None], limits.lower[:, None], limits.upper[:, None])
    blocks, place = np.arange(len(sizes)), np.zeros(len(sizes), dtype=np.int64)
    removed: np.ndarray = counts[:, 0]
    while (left := total - removed.sum()) > 0:
        is_open = place < len(grid) - 1
        if not is_open.any():
            break
        redundancy = np.where(is_open, tables[blocks, place], -np.inf)
        chosen = redundancy == redundancy.max()
        chosen &= place == place[chosen].min()
        place = place + chosen
        gain = counts[blocks, place] - removed
        removed = removed + gain * min(1.0, left / gain.sum() if gain.any() else 1.0)
    return removed
