"""What units save with each number of items removed, in another measure than their weights.

Weights are a poor measure of time: heads of attention cost more than they weigh, and a matrix
product takes its time in tiles. A budget in prices lets a search trade units by what it is that
shall be saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from sparsity_search.errors import ConfigError
from sparsity_search.profiles.layout import Layout
from sparsity_search.utils.files import digest
from sparsity_search.utils.versioned import VersionedJson

#: The file of prices.
PRICES_JSON = VersionedJson("a file of prices", 1, ("measure", "units"), ConfigError)


class Curve(NamedTuple):
    """What one unit saves at some numbers of items removed; between them it is a straight line.

    Attributes:
        removed: Rising, from 0 to all of the unit's items.
        saved: At each, in any unit of measure.
    """

    removed: tuple[int, ...]
    saved: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Prices:
    """What each unit saves, as shares of what all units together cost.

    Args:
        layout: The units.
        measure: What is saved, e.g. ``"flops"``.
        curves: Of each unit.

    Raises:
        ConfigError: Units are single weights, not a curve for each unit, a curve that does not go
            from nothing to all of its unit, a number that is not finite, or nothing is saved.
    """

    layout: Layout
    measure: str
    curves: Sequence[Curve]

    def __post_init__(self) -> None:
        if (self.layout.costs == 1).any():
            raise ConfigError(
                f"a budget in {self.measure} needs structures, since single weights save none: "
                "give --units width, heads, sublayers or blocks"
            )
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
        if self._total <= 0:
            raise ConfigError(f"no unit saves any {self.measure}: choose another measure")

    @cached_property
    def saved(self) -> tuple[np.ndarray, ...]:
        """Of each unit at each number of items removed, ``(count + 1,)`` int64, from 0.

        Whole numbers, so that sums are exact: all units removed save about as much as they have
        weights. Where a curve falls, nothing more is saved.
        """
        scale = self.layout.n_weights / self._total
        return tuple(np.rint(each * scale).astype(np.int64) for each in self._real)

    @cached_property
    def _real(self) -> list[np.ndarray]:
        found = []
        for unit, (removed, saved) in zip(self.layout, self.curves, strict=True):
            each = np.interp(np.arange(unit.count + 1), removed, np.array(saved) - saved[0])
            found.append(np.maximum.accumulate(each))
        return found

    @property
    def _total(self) -> float:
        return sum(float(each[-1]) for each in self._real)

    @cached_property
    def digest(self) -> str:
        """Identifies measure and prices: 16 hexadecimal digits."""
        return digest([self.measure, *(each.tolist() for each in self.saved)])

    def at(self, units: Sequence[int], removed: np.ndarray) -> np.ndarray:
        """Return what units save with items removed, ``(…, n_units)`` int64.

        Args:
            units: Their places in the layout.
            removed: Items removed from each, ``(…, n_units)`` int64.
        """
        columns = [self.saved[unit][removed[..., i]] for i, unit in enumerate(units)]
        return np.stack(columns, axis=-1)

    def to_json(self) -> dict[str, Any]:
        """Return the prices as a JSON object: a curve for each unit."""
        names = [unit.name for unit in self.layout]
        units = {
            name: {"removed": list(removed), "saved": list(saved)}
            for name, (removed, saved) in zip(names, self.curves, strict=True)
        }
        return {"format": PRICES_JSON.version, "measure": self.measure, "units": units}

    @classmethod
    def from_json(cls, layout: Layout, value: Any) -> Prices:
        """Return the prices that `to_json` described.

        Raises:
            ConfigError: It did not, or they are not of these units.
        """
        units, measure = PRICES_JSON.check(value)["units"], str(value["measure"])
        try:
            curves = {
                name: Curve(tuple(each["removed"]), tuple(map(float, each["saved"])))
                for name, each in units.items()
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError("not a file of prices") from error
        if set(curves) != {unit.name for unit in layout}:
            raise ConfigError("the prices are of another model, or of other units")
        return cls(layout, measure, [curves[unit.name] for unit in layout])
