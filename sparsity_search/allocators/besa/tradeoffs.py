"""Moving sparsities to where they are wanted: by one shift, and between blocks by their errors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparsity_search.utils.bisect import bisect

#: What tells apart levels of equal marginal error, as a fraction of the largest one.
_TIE = 1e-6


def shift_sparsities(
    values: np.ndarray,
    sizes: np.ndarray,
    target: float,
    lower: np.ndarray | float = 0.0,
    upper: np.ndarray | float = 1.0,
) -> np.ndarray:
    """Return sparsities plus one constant, within limits, with the weighted mean ``target``.

    A mean that the limits do not allow comes as near as they do.

    Args:
        values: ``(n,)``.
        sizes: Weights of the mean, ``(n,)``, positive.
        target: The mean.
        lower: Least of each.
        upper: Most of each.

    >>> shift_sparsities(np.array([0.1, 0.2, 0.9]), np.ones(3), 0.6).round(9).tolist()
    [0.35, 0.45, 1.0]
    """

    def at(shift: float) -> np.ndarray:
        return np.asarray(np.clip(values + shift, lower, upper))

    low = float((lower - values).min()) - 1
    high = float((upper - values).max()) + 1
    return at(bisect(lambda shift: float(at(shift) @ sizes) / sizes.sum(), target, low, high))


def balance_sparsities(
    levels: Sequence[np.ndarray], errors: Sequence[np.ndarray], sizes: np.ndarray, target: float
) -> np.ndarray:
    """Return the block sparsities of least summed error whose weighted mean is ``target``.

    At the optimum all blocks that are not at an end of their levels have one marginal error
    ``dE/ds / size``, the Lagrange multiplier of sparsity, which bisection finds. Marginal errors
    are the finite differences of each block's curve, made to rise where they do not, and
    interpolated between the levels. Where all of them are equal, the sparsities are.

    Args:
        levels: Sparsities of each block, rising.
        errors: The error at each.
        sizes: Weights of each block, ``(n_blocks,)``.
        target: The mean.
    """
    slopes = [
        np.maximum.accumulate(np.gradient(e, s) / size) if len(s) > 1 else np.zeros(1)
        for s, e, size in zip(levels, errors, sizes, strict=True)
    ]
    scale = max(float(np.abs(s).max()) for s in slopes) or 1.0
    slopes = [s + _TIE * scale * at for s, at in zip(slopes, levels, strict=True)]

    def at(multiplier: float) -> np.ndarray:
        pairs = zip(slopes, levels, strict=True)
        return np.array([np.interp(multiplier, slope, level) for slope, level in pairs])

    low, high = min(s[0] for s in slopes), max(s[-1] for s in slopes)
    return at(bisect(lambda m: float(at(m) @ sizes) / sizes.sum(), target, low, high))
