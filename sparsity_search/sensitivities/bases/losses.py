"""Losses that never fall as more is removed."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from sparsity_search.errors import NumericalError


def enforce_rising(losses: ArrayLike, name: str) -> np.ndarray:
    """Return losses that never fall as more is removed, ``(n_levels,)`` float64.

    Raises:
        NumericalError: One is not finite; names the unit.
    """
    found = np.asarray(losses, dtype=np.float64)
    if not np.isfinite(found).all():
        raise NumericalError(f"{name}: its losses are not finite")
    return np.asarray(np.maximum.accumulate(found.clip(0)))
