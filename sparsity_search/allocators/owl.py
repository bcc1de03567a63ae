"""Outlier-weighed layer-wise sparsity: blocks with more outliers keep more weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sparsity_search.allocators.base import Allocator
from sparsity_search.budget import Bounds, Budget
from sparsity_search.models.prunable import PrunableModel
from sparsity_search.models.walk import Visit, walk
from sparsity_search.profile import SparsityProfile
from sparsity_search.statistics import Statistic


@dataclass(frozen=True, kw_only=True)
class OWL(Allocator):
    """OWL (Yin et al., ICML 2024, arXiv 2310.05175, section 4).

    With scores ``A_ij = |W_ij| · rms(x_j)`` of all linears of block ``b`` in the dense model, its
    outlier ratio ``D_b`` is the fraction of scores above ``m`` times their mean. Densities are
    the ``D_b``, scaled linearly to a range of width ``2 · spread`` around the target. The paper
    centres them by a plain mean over blocks; here the budget's projection does, so that unequal
    blocks meet it too. All linears of a block share its sparsity. Equal ratios give the uniform
    profile.

    Args:
        m: Outlier threshold as a multiple of the mean score (M in the paper).
        spread: Half the range of sparsities over blocks (λ in the paper).
    """

    m: float = 5.0
    spread: float = 0.08

    def __post_init__(self) -> None:
        if not (self.m > 0 and 0 <= self.spread < 1):
            raise ValueError("m must be positive, and spread in [0, 1)")

    def allocate(
        self, subject: PrunableModel, tokens: Tensor, budget: Budget, bounds: Bounds
    ) -> SparsityProfile:
        """Return the profile from one pass of ``tokens`` through the dense model."""
        budget.check(subject.layout, bounds)
        ratios = {
            visit.block: outlier_ratio(block_scores(subject, visit), self.m)
            for visit in walk(subject, tokens, Statistic.NORM, rewritten=False)
            if visit.units
        }
        blocks = np.array([ratios[unit.block] for unit in subject.layout])
        reach = max(ratios.values()) - min(ratios.values())
        denser = 2 * self.spread * (blocks - min(ratios.values())) / reach if reach else 0 * blocks
        return budget.project(subject.layout, budget.target - denser, bounds)


def block_scores(subject: PrunableModel, visit: Visit) -> list[Tensor]:
    """Return ``|W_ij| · rms(x_j)`` of each unit of a block, flat, in float32."""
    return [
        (subject.views[u.name].read().float().abs() * visit.statistics[u.name].norms()).flatten()
        for u in visit.units
    ]


def outlier_ratio(scores: list[Tensor], m: float) -> float:
    """Return the fraction of all scores that lie above ``m`` times their common mean.

    >>> import torch
    >>> outlier_ratio([torch.tensor([1.0, 1.0, 1.0]), torch.tensor([9.0])], m=2)
    0.25
    """
    size = sum(part.numel() for part in scores)
    mean = sum(float(part.double().sum()) for part in scores) / size
    return sum(int((part > m * mean).sum()) for part in scores) / size
