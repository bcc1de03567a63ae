"""DSA: sparsities from a small programme over each block's scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from sparsity_search.allocators.bases.rescale import check_spread, rescale_values
from sparsity_search.allocators.bases.wanda_scores import KINDS, measure_scores
from sparsity_search.allocators.dsa.expressions import Expression
from sparsity_search.interfaces.allocator import AllocationProblem, Allocator


@dataclass(frozen=True, kw_only=True)
class DSAAllocator(Allocator):
    """DSA (Li et al., NeurIPS 2024): an expression over a block's scores; higher is pruned more.

    The scores of block ``b`` are ``|W_ij| · rms(x_j)`` of all its linears in the dense model, one
    vector ``x``. The expression makes one value ``v_b`` of it. Sparsities are the ``v_b``, scaled
    linearly to a range of width ``2 · spread`` around the target; the budget's projection centres
    them. All linears of a block share its sparsity. Equal values give the uniform profile.

    An expression is a chain of functions, one of which reduces ``x`` to a value:

    - of scores: identity, abs, log, abslog, square, exp, standardise, sigmoid, tanh, minmax;
    - from scores to a value: mean, var, std, l1 (mean of magnitudes), frobenius, geometric_mean,
      entropy (of scores as shares of their sum);
    - of the value: identity, sin, cos, tan, asin, acos, atan, exp, log, abs, sigmoid, tanh,
      softplus.

    The logarithm of scores takes 1 for those that are not positive, abslog for those that are 0.
    As in the released code, a value that is undefined (NaN) counts as 0, an infinite one as -1.
    So the published expression jumps to 0 where the variance exceeds ``tan 1``.

    Args:
        expression: By default the one published for LLaMA-1-7B.
        spread: Half the range of sparsities over blocks (λ in the released code).
    """

    units: ClassVar[tuple[str, ...]] = KINDS

    expression: str = "asin(atan(var(abslog(x))))"
    spread: float = 0.08

    def __post_init__(self) -> None:
        check_spread(self.spread)
        Expression.parse(self.expression)

    def propose(self, problem: AllocationProblem) -> np.ndarray:
        """Return sparsities from one pass of the text through the dense model.

        Raises:
            NumericalError: A score is not finite.
        """
        program = Expression.parse(self.expression)
        values = measure_scores(problem, lambda scores: program(torch.cat(scores)))
        return problem.target + rescale_values(values, self.spread)
