"""Parameters: settings of an allocator that are searched, each with few values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeGuard

import numpy as np

from sparsity_search.errors import ConfigError

#: What a parameter can be.
Value = bool | int | float | str | None

#: Most values of one parameter.
_MOST = 10_000
#: Digits to which the values of a grid are rounded: 3 · 0.02 is 0.06.
_DIGITS = 12


@dataclass(frozen=True)
class Parameter:
    """One setting of an allocator, and its possible values.

    Attributes:
        name: Name of the setting; dots lead to entries, ``knots.0`` or ``offsets.q``.
        values: Distinct values, at least one.
        grid: Spacing of the values: ``choices`` as listed, or numbers that rise by equal
            differences (``linear``) or equal factors (``log``).

    Raises:
        ConfigError: There is no value, or two are equal.
    """

    name: str
    values: tuple[Value, ...]
    grid: Literal["choices", "linear", "log"] = "choices"

    def __post_init__(self) -> None:
        if not self.values or len(set(map(repr, self.values))) < len(self.values):
            raise ConfigError(f"{self.name} needs distinct values, not {list(self.values)}")

    @property
    def ordered(self) -> bool:
        """Whether the values are rising numbers, so that neighbours are similar."""
        if not all(_is_number(value) for value in self.values):
            return False
        return list(self.values) == sorted(self.values)  # type: ignore[type-var]

    def nearest(self, value: object) -> int:
        """Return the index of a value, or of the nearest number.

        If ``value`` is not a number, the number nearest to 0 is taken. Values without an order
        have no distance: for a value that is not listed the first one is taken.
        """
        for index, own in enumerate(self.values):
            if type(own) is type(value) and own == value:
                return index
        if not self.ordered:
            return 0
        wanted = float(value) if _is_number(value) else 0.0
        known = np.array(self.values, dtype=np.float64)
        if self.grid == "log" and wanted > 0:
            return int(np.abs(np.log(known / wanted)).argmin())
        return int(np.abs(known - wanted).argmin())


def stepped(name: str, low: float, high: float, step: float) -> Parameter:
    """Return the parameter of a grid with equal differences.

    The values are integers if all arguments are.

    Raises:
        ConfigError: Not ``low < high``, or not a whole number of steps between them, or too many.

    >>> stepped("spread", 0.02, 0.08, 0.02).values
    (0.02, 0.04, 0.06, 0.08)
    """
    steps = (high - low) / step if step > 0 else 0
    if steps > _MOST:
        raise ConfigError(f"{name}: from low {low} to high {high} are more than {_MOST} steps")
    n_steps = round(steps)
    if n_steps < 1 or abs(low + n_steps * step - high) > 1e-9 * abs(step):
        raise ConfigError(
            f"{name}: from low {low} to high {high} must be a whole number of steps of {step}"
        )
    values = [low + i * step for i in range(n_steps)] + [high]
    whole = all(isinstance(part, int) for part in (low, high, step))
    return Parameter(name, tuple(v if whole else round(v, _DIGITS) for v in values), "linear")


def spaced(name: str, low: float, high: float, points: int, *, log: bool = False) -> Parameter:
    """Return the parameter of a grid of ``points`` values with equal differences or factors.

    Raises:
        ConfigError: Not ``low < high``, fewer than two points or too many, or ``low <= 0`` with
            ``log``.

    >>> spaced("m", 1, 100, 3, log=True).values
    (1.0, 10.0, 100.0)
    """
    if not low < high or not 2 <= points <= _MOST or (log and low <= 0):
        positive = "0 < " if log else ""
        raise ConfigError(
            f"{name} needs {positive}low < high and 2 to {_MOST} points, "
            f"not {low} to {high} in {points}"
        )
    inner = (np.geomspace if log else np.linspace)(low, high, points)[1:-1]
    values = (float(low), *(float(v) for v in np.round(inner, _DIGITS)), float(high))
    return Parameter(name, values, "log" if log else "linear")


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
