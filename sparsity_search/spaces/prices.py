"""Prices: the savings of units in their states, in a measure other than their weights.

Weights are a poor measure of time: an attention head costs more than its weights suggest, and
the time of a matrix product changes in tiles. A budget in prices lets a search trade units by
the relevant quantity. The state of a unit is a number of items removed, or an N:M pattern.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field

from sparsity_search.errors import ConfigError
from sparsity_search.profiles.layout import Layout
from sparsity_search.utils.files import compute_digest
from sparsity_search.utils.shapes import Count, Shape
from sparsity_search.utils.versioned import VersionedJson


class _CurveShape(Shape):
    """The savings of a unit in the file of prices."""

    removed: list[Count] = Field(min_length=2)
    saved: list[float]
    patterns: dict[str, float] = Field({})


class _PricesShape(Shape):
    """The file of prices."""

    measure: str
    units: dict[str, _CurveShape] = Field(min_length=1)


#: Format of the file of prices.
PRICES_JSON = VersionedJson("a file of prices", 1, _PricesShape, ConfigError)


class PriceCurve(NamedTuple):
    """The saving of one unit by number of items removed, linear between the given points.

    Attributes:
        removed: Numbers of items removed, rising from 0 to all of the unit's items.
        saved: Saving at each number, in any unit of measure.
    """

    removed: tuple[int, ...]
    saved: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Prices:
    """The savings of each unit in its states, as shares of the total cost of all units.

    Prices are integers, so that sums are exact. They are scaled so that removing all units
    saves about the number of their weights.

    Args:
        layout: The units.
        measure: Name of the quantity saved, e.g. ``"flops"``.
        curves: The curve of each unit. Its last point is the cost of the unit.
        patterns: Saving of each unit in each N:M pattern, ``(n_units,)`` for each pattern, in
            the unit of measure of the curves.

    Raises:
        ConfigError: A unit has no curve or number, a curve does not span its unit from no items
            to all, a number is not finite, or nothing is saved.
    """

    layout: Layout
    measure: str
    curves: Sequence[PriceCurve]
    patterns: Mapping[str, Sequence[float] | np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.curves) != len(self.layout):
            raise ConfigError(
                f"{len(self.curves)} curves of {self.measure} for {len(self.layout)} units"
            )
        for unit, (removed, saved) in zip(self.layout, self.curves, strict=True):
            whole = len(removed) == len(saved) and (*removed[:1], *removed[-1:]) == (0, unit.count)
            if not whole or (np.diff(removed) <= 0).any() or not np.isfinite(saved).all():
                raise ConfigError(
                    f"the {self.measure} of {unit.name} must be finite numbers from 0 to "
                    f"{unit.count} items removed"
                )
        for pattern, each in self.patterns.items():
            if len(each) != len(self.layout) or not np.isfinite(each).all():
                raise ConfigError(
                    f"the {self.measure} of {pattern} must be a finite number for each unit"
                )
        if self._total <= 0:
            raise ConfigError(f"no unit saves any {self.measure}: choose another measure")

    def at(self, units: Sequence[int], removed: np.ndarray) -> np.ndarray:
        """Return the savings of units with items removed, ``(…, n_units)`` int64.

        Savings never fall: where a curve falls, its greatest value so far is used.

        Args:
            units: Positions of the units in the layout.
            removed: Items removed from each, ``(…, n_units)`` int64.
        """
        columns = [self._whole(self._real(u, removed[..., i])) for i, u in enumerate(units)]
        return np.stack(columns, axis=-1)

    def of_pattern(self, pattern: str) -> np.ndarray:
        """Return the saving of each unit in a pattern, ``(n_units,)`` int64."""
        return self._whole(np.asarray(self.patterns[pattern], dtype=np.float64))

    def of_units(self, units: Sequence[int]) -> Prices:
        """Return the prices of some of the units, as shares of their own total cost."""
        return Prices(
            Layout([self.layout[i] for i in units]),
            self.measure,
            [self.curves[i] for i in units],
            {pattern: np.asarray(each)[list(units)] for pattern, each in self.patterns.items()},
        )

    @cached_property
    def costs(self) -> np.ndarray:
        """Cost of each dense unit, saved if all its items are removed, ``(n_units,)`` int64."""
        return self.at(range(len(self.layout)), self.layout.counts)

    @cached_property
    def digest(self) -> str:
        """Identifier of measure and prices, 16 hexadecimal digits."""
        if self.patterns or (self.layout.costs == 1).any():
            return compute_digest(self.to_json())
        counts = [np.arange(unit.count + 1) for unit in self.layout]  # few, of structures
        each = [self.at([i], removed[:, None])[:, 0] for i, removed in enumerate(counts)]
        return compute_digest([self.measure, *(saved.tolist() for saved in each)])

    def _real(self, unit: int, removed: np.ndarray | int) -> np.ndarray:
        """Return the savings of a unit in the measure's own unit, which never fall."""
        knots, saved = self.curves[unit].removed, np.array(self.curves[unit].saved)
        saved = saved - saved[0]
        before = np.maximum.accumulate(saved)[np.searchsorted(knots, removed, "right") - 1]
        return np.asarray(np.maximum(before, np.interp(removed, knots, saved)))

    def _whole(self, saved: np.ndarray) -> np.ndarray:
        return np.rint(saved * (self.layout.n_weights / self._total)).astype(np.int64)

    @cached_property
    def _total(self) -> float:
        return float(sum(float(self._real(i, u.count)) for i, u in enumerate(self.layout)))

    def to_json(self) -> dict[str, Any]:
        """Return the prices as a JSON object: a curve for each unit, and its patterns if any."""
        units = {}
        for i, (unit, (removed, saved)) in enumerate(zip(self.layout, self.curves, strict=True)):
            patterns = {pattern: float(each[i]) for pattern, each in self.patterns.items()}
            curve: dict[str, Any] = {"removed": list(removed), "saved": list(saved)}
            units[unit.name] = {**curve, "patterns": patterns} if patterns else curve
        return {"format": PRICES_JSON.version, "measure": self.measure, "units": units}

    @classmethod
    def from_json(cls, layout: Layout, value: Any) -> Prices:
        """Return the prices that `to_json` describes.

        Raises:
            ConfigError: ``value`` does not describe prices, or its units are not these.
        """
        stored = _PricesShape.model_validate(PRICES_JSON.check(value))
        if stored.units.keys() != {unit.name for unit in layout}:
            raise ConfigError("the prices are of another model, or of other units")
        each = [stored.units[unit.name] for unit in layout]
        if any(one.patterns.keys() != each[0].patterns.keys() for one in each):
            raise ConfigError("not a file of prices: a unit lacks a pattern")
        curves = [PriceCurve(tuple(one.removed), tuple(one.saved)) for one in each]
        patterns = {
            pattern: [one.patterns[pattern] for one in each] for pattern in each[0].patterns
        }
        return cls(layout, stored.measure, curves, patterns)
