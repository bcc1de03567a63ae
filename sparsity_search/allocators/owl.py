"""Outlier-weighed layer-wise sparsity: blocks with more outliers keep more weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from sparsity_search.allocators.bases.rescale import check_spread, rescale_values
from sparsity_search.allocators.bases.wanda_scores import KINDS, measure_scores
from sparsity_search.errors import ConfigError
from sparsity_search.interfaces.allocator import AllocationProblem, Allocator

_PER = ("block", "linear")


@dataclass(frozen=True, kw_only=True)
class OWLAllocator(Allocator):
    """OWL (Yin et al., ICML 2024, arXiv 2310.05175, section 4): more outliers keep more weights.

    With scores ``A_ij = |W_ij| · rms(x_j)`` of all linears of block ``b`` in the dense model, its
    outlier ratio ``D_b`` is the fraction of scores above ``m`` times their mean. Densities are
    the ``D_b``, scaled linearly to a range of width ``2 · spread`` around the target. The paper
    centres them by a plain mean over blocks; here the budget's projection does, so that unequal
    blocks meet it too. All linears of a block share its sparsity, unless ``per`` says otherwise.
    Equal ratios give the uniform profile.

    Args:
        m: Outlier threshold as a multiple of the mean score (M in the paper).
        spread: Half the range of sparsities (λ in the paper).
        per: One ratio for each ``block``, as in the paper, or for each ``linear``.
    """

    units: ClassVar[tuple[str, ...]] = KINDS

    m: float = 5.0
    spread: float = 0.08
    per: str = "block"

    def __post_init__(self) -> None:
        if not self.m > 0:
            raise ConfigError(f"m must be positive, not {self.m}")
        check_spread(self.spread)
        if self.per not in _PER:
            raise ConfigError(f"per must be one of {', '.join(_PER)}, not {self.per!r}")

    def propose(self, problem: AllocationProblem) -> np.ndarray:
        """Return sparsities from one pass of the text through the dense model.

        Raises:
            NumericalError: A score is not finite.
        """
        ratios = measure_scores(
            problem, lambda scores: compute_outlier_ratio(scores, self.m), per=self.per
        )
        return problem.target - rescale_values(ratios, self.spread)


def compute_outlier_ratio(scores: list[Tensor], m: float) -> float:
    """Return the fraction of all scores that lie above ``m`` times their common mean.

    >>> import torch
    >>> compute_outlier_ratio([torch.tensor([1.0, 1.0, 1.0]), torch.tensor([9.0])], m=2)
    0.25
    """
    size = sum(part.numel() for part in scores)
    mean = sum(float(part.double().sum()) for part in scores) / size
    return sum(int((part > m * mean).sum()) for part in scores) / size
