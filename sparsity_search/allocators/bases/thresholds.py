"""A global threshold, shares and soft limits, for allocators from the weights alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sparsity_search.errors import NumericalError
from sparsity_search.profiles.budget import Bounds, water_fill
from sparsity_search.profiles.layout import Layout

#: Bits of a score that each pass leaves to the next one; the sign bit is 0.
_SHIFTS = (20, 9, 0)
_BINS = 1 << 11
#: A share of a unit's items that counts as none; above the rounding of float64.
_LEAST_SHARE = 1e-12


def count_below_threshold(
    layout: Layout, scores: Callable[[str], Tensor], bounds: Bounds, n_removed: int
) -> np.ndarray:
    """Return how many items of each unit lie below one threshold, ``(n_units,)`` float64.

    The threshold is the one at which the counts, clipped to the bounds, cost ``n_removed``. Items
    that lie at the threshold itself are shared among the units in proportion, so no order of
    units or items matters; these are the only fractions.

    Non-negative float32 numbers rise with their bit patterns, so the threshold is found bit by
    bit: three passes, each with a histogram of every unit. Only one unit's scores are alive.

    Args:
        layout: The units.
        scores: Returns those of a unit's items, by its name: float32, not negative. It is called
            three times for each unit.
        bounds: Limits in items.
        n_removed: Weights to remove, within what the bounds allow.

    Raises:
        NumericalError: A score is not finite.
    """
    lower, upper = bounds.lower[:, None], bounds.upper[:, None]
    base, below = 0, np.zeros(len(layout), dtype=np.int64)
    for shift in _SHIFTS:
        found = np.stack([_compute_histogram(scores(unit.name), base, shift) for unit in layout])
        up_to = below[:, None] + found.cumsum(axis=1)
        costs = layout.costs @ np.clip(up_to, lower, upper)
        first = int(np.searchsorted(costs, n_removed))
        base += first << shift
        below = up_to[:, first] - found[:, first]
    at = found[:, first]
    low, high = (np.clip(counts, bounds.lower, bounds.upper) for counts in (below, below + at))
    tied = int(layout.costs @ (high - low))
    share = (n_removed - int(layout.costs @ low)) / tied if tied else 0.0
    return np.asarray(low + share * (high - low))


def _compute_histogram(scores: Tensor, base: int, shift: int) -> np.ndarray:
    """Return how many scores have each value of the bits above ``shift``, from ``base`` on."""
    if not bool(scores.isfinite().all()):
        raise NumericalError("scores are not finite: a weight is NaN, Inf or huge")
    bins = (scores.flatten().view(torch.int32) - base) >> shift
    bins = bins[(bins >= 0) & (bins < _BINS)] if shift < _SHIFTS[0] else bins
    return torch.bincount(bins, minlength=_BINS).cpu().numpy()


def remove_in_proportion(
    layout: Layout, shares: np.ndarray, bounds: Bounds, n_removed: int
) -> np.ndarray:
    """Return how many weights each unit loses, in proportion to its share, within the bounds.

    Zeros of the dense model come first and are not counted. Units whose share is 0 lose weights
    only when all others are at their limits.

    Args:
        layout: Units of single weights.
        shares: ``(n_units,)``, not negative.
        bounds: Limits of what is removed.
        n_removed: Weights to remove, within what the bounds allow.

    Returns:
        ``(n_units,)`` int64, which sum to ``n_removed``.
    """
    slopes = np.maximum(shares, _LEAST_SHARE * layout.counts)
    return water_fill(layout.zeros.astype(float), slopes, bounds, layout.costs, n_removed)


def keep_in_proportion(
    layout: Layout, shares: np.ndarray, bounds: Bounds, n_removed: int
) -> np.ndarray:
    """Return how many weights each unit loses if it keeps some in proportion to its share.

    Args:
        layout: Units of single weights.
        shares: ``(n_units,)``, not negative.
        bounds: Limits of what is removed.
        n_removed: Weights to remove, within what the bounds allow.

    Returns:
        ``(n_units,)`` int64, which sum to ``n_removed``.
    """
    keeping = Bounds(lower=layout.counts - bounds.upper, upper=layout.counts - bounds.lower)
    slopes = np.maximum(shares, _LEAST_SHARE * layout.counts)
    n_kept = layout.n_weights - n_removed
    kept = water_fill(np.zeros(len(layout)), slopes, keeping, layout.costs, n_kept)
    return np.asarray(layout.counts - kept)


def soften_bounds(layout: Layout, bounds: Bounds, most: np.ndarray, n_removed: int) -> Bounds:
    """Return bounds that stop at ``most`` items of each unit, if they still meet the budget.

    If they do not, all units go up to ``most`` at least, and the given bounds hold beyond.

    Args:
        layout: The units.
        bounds: Limits in items, which hold in any case.
        most: Limits that may give way, in items, ``(n_units,)``.
        n_removed: Weights to remove, within what ``bounds`` allow.
    """
    most = np.clip(np.floor(most + 1e-9).astype(np.int64), bounds.lower, bounds.upper)
    if int(most @ layout.costs) >= n_removed:
        return Bounds(lower=bounds.lower, upper=most)
    return Bounds(lower=most, upper=bounds.upper)
