"""Layer-adaptive magnitudes: one threshold on scores that compare a weight with its own layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sparsity_search.allocators.bases.thresholds import count_below_threshold
from sparsity_search.interfaces.allocator import AllocationProblem, Allocator


@dataclass(frozen=True, kw_only=True)
class LAMPAllocator(Allocator):
    """One threshold on squared weights, each divided by the sum of those not smaller in its unit.

    LAMP (Lee et al., ICLR 2021, arXiv 2010.07611): with the weights of a unit by rising
    magnitude, ``score(u) = w_u² / Σ_{v ≥ u} w_v²``. The largest weight of each unit has score 1
    and all others at most 1/2, so no unit is emptied unless the budget or the bounds demand it.
    Scores do not change when a unit is scaled.
    """

    needs_text: ClassVar[bool] = False
    experimental: ClassVar[str] = (
        "perplexity at 70% 1.49 times that of uniform with SparseGPT, 4.81 times with Wanda "
        "(SmolLM2-135M)"
    )

    def propose(self, problem: AllocationProblem) -> np.ndarray:
        """Return the sparsities at the global threshold.

        Raises:
            NumericalError: A weight is not finite.
        """
        layout, views = problem.layout, problem.subject.views
        counts = count_below_threshold(
            layout,
            lambda name: compute_lamp_scores(views[name].read()),
            problem.bounds,
            problem.n_removed,
        )
        return np.asarray(counts / layout.counts)


def compute_lamp_scores(weight: Tensor) -> Tensor:
    """Return the scores of a unit's weights by falling magnitude, flat, in float32.

    Equal weights are put in any order, which changes no score. Weights that are zero have 0.

    >>> compute_lamp_scores(torch.tensor([[1.0, -2.0], [2.0, 0.0]])).tolist()
    [1.0, 0.5, 0.1111111119389534, 0.0]
    """
    # NumPy's sort is many times faster than that of PyTorch on a CPU; NaN and Inf stay
    magnitudes = np.sort(weight.float().abs().flatten().cpu().numpy())[::-1].copy()
    squares = torch.from_numpy(magnitudes).double().square()
    totals = squares.cumsum(dim=0).clamp_min(torch.finfo(squares.dtype).tiny)
    return (squares / totals).float()
