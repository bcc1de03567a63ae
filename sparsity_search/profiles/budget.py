"""The global budget, and the projection that makes any sparsities meet it exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsity_search.errors import ConfigError, InfeasibleBudgetError
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import SparsityProfile, from_counts
from sparsity_search.utils.bisect import bisect

#: Multiples of it modulo 1 fill the unit interval evenly, whatever their number.
_GOLDEN = (5**0.5 - 1) / 2
_REMAINDER_DIGITS = 9


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Fewest and most items that may be removed from each unit, ``(n_units,)`` int64 each."""

    lower: np.ndarray
    upper: np.ndarray

    @classmethod
    def of(
        cls, layout: Layout, lower: np.ndarray | float = 0.0, upper: np.ndarray | float = 1.0
    ) -> Bounds:
        """Return the bounds in items for limits of sparsity in ``[0, 1]``.

        Items that are zero in the dense model are always removed, so they are a lower bound.

        Raises:
            InfeasibleBudgetError: A unit's lower bound lies above its upper bound.
        """
        exact = 1e-9  # 0.3 * 10 is a little more than 3: do not round that up to 4
        low = np.ceil(layout.counts * np.asarray(lower, float) - exact).astype(np.int64)
        high = np.floor(layout.counts * np.asarray(upper, float) + exact).astype(np.int64)
        low = np.maximum(low, layout.zeros)
        for unit, least, most in zip(layout, low, high, strict=True):
            if least > most:
                raise InfeasibleBudgetError(
                    f"{unit.name}: at least {least} of {unit.count} items must go "
                    f"({unit.zeros} are zero already), but its bounds allow at most {most}"
                )
        return cls(lower=low, upper=high)


@dataclass(frozen=True)
class Budget:
    """The fraction of all prunable weights to remove.

    Args:
        target: Global sparsity, strictly between 0 and 1.

    Raises:
        ConfigError: ``target`` is not in (0, 1).
    """

    target: float

    def __post_init__(self) -> None:
        if not 0 < self.target < 1:
            raise ConfigError(f"sparsity must lie strictly between 0 and 1, not {self.target}")

    def n_removed(self, layout: Layout) -> int:
        """Return the budget in weights: the target times all prunable weights, rounded."""
        return round(self.target * layout.n_weights)

    def check(self, layout: Layout, bounds: Bounds) -> None:
        """Check that some profile within ``bounds`` meets the budget.

        Raises:
            InfeasibleBudgetError: No profile does; the message names the feasible range.
        """
        low, high = (int(counts @ layout.costs) for counts in (bounds.lower, bounds.upper))
        target = self.n_removed(layout)
        if not low <= target <= high:
            total = layout.n_weights
            raise InfeasibleBudgetError(
                f"sparsity {self.target} is out of reach: the bounds allow "
                f"{low / total:.6g} to {high / total:.6g} ({low} to {high} of {total} weights)"
                + (explain_zeros(layout) if target < low else "")
            )

    def uniform(self, layout: Layout, bounds: Bounds | None = None) -> SparsityProfile:
        """Return the profile nearest to equal sparsity in all units."""
        return self.project(layout, np.full(len(layout), self.target), bounds)

    def project(
        self, layout: Layout, sparsities: np.ndarray, bounds: Bounds | None = None
    ) -> SparsityProfile:
        """Return the profile nearest to ``sparsities`` that meets the budget within ``bounds``.

        Water-filling: the size-weighted least-squares projection onto the budget shifts all
        sparsities by one constant and clips them to the bounds (its KKT conditions). The result
        is rounded by largest remainder: single weights meet the budget exactly, structures to
        within the largest one.

        Args:
            layout: The units.
            sparsities: Wanted sparsity of each unit, ``(n_units,)``; any finite numbers.
            bounds: Limits in items; by default from the zeros of the dense model to all items.

        Raises:
            InfeasibleBudgetError: No profile within the bounds meets the budget.
            ConfigError: ``sparsities`` are not finite or of the wrong shape.
        """
        bounds = bounds or Bounds.of(layout)
        self.check(layout, bounds)
        wanted = np.asarray(sparsities, dtype=np.float64)
        if wanted.shape != (len(layout),) or not np.isfinite(wanted).all():
            raise ConfigError(f"need {len(layout)} finite sparsities to project")
        return from_counts(layout, round_to_budget(layout, wanted, bounds, self.n_removed(layout)))


def explain_zeros(layout: Layout) -> str:
    """Return the end of a message about a target that the model's own zeros exclude.

    It is empty for a model without zeros.
    """
    zeros = int(layout.zeros @ layout.costs)
    if not zeros:
        return ""
    return (
        f"; {zeros} of these weights ({zeros / layout.n_weights:.1%}) are zero in the model "
        "already, and stay zero: ask for more than that, or prune the dense model"
    )


def round_to_budget(
    layout: Layout, wanted: np.ndarray, bounds: Bounds, n_removed: int
) -> np.ndarray:
    """Return the counts nearest to sparsities ``wanted`` that remove ``n_removed`` weights.

    Args:
        layout: The units.
        wanted: Wanted sparsity of each unit, ``(n_units,)``.
        bounds: Limits in items, ``(n_units,)``.
        n_removed: Weights to remove, within what the bounds allow.

    Returns:
        Items removed from each unit, ``(n_units,)`` int64.
    """
    return water_fill(wanted * layout.counts, layout.counts, bounds, layout.costs, n_removed)


def water_fill(
    values: np.ndarray, slopes: np.ndarray, bounds: Bounds, costs: np.ndarray, total: int
) -> np.ndarray:
    """Return the integers nearest to ``values + shift * slopes`` that cost ``total``.

    One common shift is found by bisection so that the values, clipped to the bounds, cost
    ``total``; then they are rounded by largest remainder.

    Args:
        values: ``(n,)`` float64.
        slopes: How far the common shift moves each value, ``(n,)``, positive.
        bounds: Limits of each integer, ``(n,)``.
        costs: Cost of one step of each integer, ``(n,)``, positive.
        total: The cost to meet, within what the bounds allow.

    Returns:
        ``(n,)`` int64.
    """

    def at(shift: float) -> np.ndarray:
        shifted: np.ndarray = np.clip(values + shift * slopes, bounds.lower, bounds.upper)
        return shifted

    low = float(((bounds.lower - values) / slopes).min()) - 1.0
    high = float(((bounds.upper - values) / slopes).max()) + 1.0
    shift = bisect(lambda shift: float(at(shift) @ costs), total, low, high)
    return _round(at(shift), bounds, costs, total)


def _round(exact: np.ndarray, bounds: Bounds, costs: np.ndarray, total: int) -> np.ndarray:
    """Round to integers that cost ``total``: the largest remainders go up first.

    Units of equal remainders (many have one shape) go up in an order spread evenly over the
    model: structures are few and large, and one end of a model must not lose them all.
    """
    result: np.ndarray = np.clip(np.floor(exact).astype(np.int64), bounds.lower, bounds.upper)
    left = total - int(result @ costs)
    sign = 1 if left > 0 else -1
    limit = bounds.upper if sign > 0 else bounds.lower
    remainders = np.round(-sign * (exact - result), _REMAINDER_DIGITS)
    order = np.lexsort((_compute_spread_order(len(exact)), remainders))
    moved = True
    while moved and left:
        moved = False
        for i in order:
            if costs[i] <= abs(left) and result[i] != limit[i]:
                result[i] += sign
                left -= sign * int(costs[i])
                moved = True
    return result


def _compute_spread_order(n: int) -> np.ndarray:
    """Return a rank for each of ``n`` positions such that the first ranks lie far apart."""
    return np.asarray((np.arange(n) * _GOLDEN + 0.5) % 1.0)
