"""DLP: blocks whose scores have a higher median lose more weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sparsity_search.allocators.bases.rescale import check_spread, rescale_values
from sparsity_search.allocators.bases.wanda_scores import KINDS, measure_scores
from sparsity_search.errors import ConfigError
from sparsity_search.interfaces.allocator import AllocationProblem, Allocator

_STATISTICS = ("median", "mean")


@dataclass(frozen=True, kw_only=True)
class DLPAllocator(Allocator):
    """DLP (Chen et al., ICML 2025, arXiv 2505.23807): a higher median score is pruned more.

    With scores ``A_ij = |W_ij| · rms(x_j)`` of all linears of block ``b`` in the dense model, its
    unimportance ``v_b`` is their median. The paper's importance ``1 - v_b / Σ v`` is an affine
    function of ``v_b``, so that sparsities are the ``v_b``, scaled linearly to a range of width
    ``2 · spread`` around the target. The budget's projection centres them, so that unequal blocks
    meet it too. All linears of a block share its sparsity. Equal medians give the uniform profile.

    Args:
        spread: Half the range of sparsities over blocks (α in the paper).
        statistic: ``median``, as in the paper, or ``mean``, as the released code has it.
    """

    units: ClassVar[tuple[str, ...]] = KINDS

    spread: float = 0.15
    statistic: str = "median"

    def __post_init__(self) -> None:
        check_spread(self.spread)
        if self.statistic not in _STATISTICS:
            known = ", ".join(_STATISTICS)
            raise ConfigError(f"statistic must be one of {known}, not {self.statistic!r}")

    def propose(self, problem: AllocationProblem) -> np.ndarray:
        """Return sparsities from one pass of the text through the dense model.

        Raises:
            NumericalError: A score is not finite.
        """
        centres = measure_scores(
            problem, compute_median if self.statistic == "median" else compute_mean
        )
        return problem.target + rescale_values(centres, self.spread)


def compute_median(scores: list[Tensor]) -> float:
    """Return the median of all scores; of two middle ones, the lower.

    >>> compute_median([torch.tensor([1.0, 5.0]), torch.tensor([2.0, 9.0])])
    2.0
    """
    return float(torch.cat(scores).median())


def compute_mean(scores: list[Tensor]) -> float:
    """Return the mean of all scores, summed in float64.

    >>> compute_mean([torch.tensor([1.0, 5.0]), torch.tensor([6.0])])
    4.0
    """
    return sum(float(part.double().sum()) for part in scores) / sum(map(len, scores))
