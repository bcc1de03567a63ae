"""The linear map from scores to sparsities that many allocators share."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from sparsity_search.errors import ConfigError, NumericalError


def rescale_values(values: ArrayLike, spread: float) -> np.ndarray:
    """Return ``values`` mapped linearly to a range of width ``2 · spread``, from 0 on.

    OWL (arXiv 2310.05175), DLP, DSA and NeuroAL do this before they centre the result on the
    target by its plain mean. Here `Budget.project` centres it, with a mean weighted by parameters.
    A positive factor of all values, or a constant added to them, changes nothing.

    Args:
        values: ``(n_units,)``.
        spread: Half the range of the result; a negative one turns the order round.

    Returns:
        ``(n_units,)`` float64; zeros if all values are equal.

    Raises:
        NumericalError: A value is not finite.

    >>> rescale_values([3, 1, 2], spread=0.1).tolist()
    [0.2, 0.0, 0.1]
    """
    found = np.asarray(values, dtype=np.float64)
    if not np.isfinite(found).all():
        raise NumericalError("scores are not finite: weights or activations have huge entries")
    above = found / 2 - found.min() / 2  # half the values: their range cannot overflow
    reach = above.max()
    return np.asarray(above / reach * (2 * spread)) if reach else np.zeros(len(found))


def check_spread(spread: float) -> None:
    """Check half the range of sparsities.

    Raises:
        ConfigError: It is not in ``[0, 1)``.
    """
    if not 0 <= spread < 1:
        raise ConfigError(f"spread must lie in [0, 1), not {spread}")
