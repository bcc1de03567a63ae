"""Layout of a model's prunable units in forward order: names and sizes, without weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np
from pydantic import ConfigDict

from sparsity_search.errors import ProfileError, UnknownNameError, show_value, suggest_name
from sparsity_search.utils.files import compute_digest
from sparsity_search.utils.shapes import Count, Shape, Size, parse_shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One prunable unit.

    Attributes:
        name: Unique name, e.g. ``"model.layers.3.mlp.up_proj"``.
        block: Index of its decoder block.
        role: Its function in the block, e.g. ``"q"`` or ``"up"``.
        count: Number of items that can be removed: weights or structures.
        cost: Weights per item (1 for single weights).
        zeros: Items that are zero in the dense model; they count as removed first.
    """

    name: str
    block: int
    role: str
    count: int
    cost: int = 1
    zeros: int = 0

    @property
    def size(self) -> int:
        """Weights in the unit."""
        return self.count * self.cost


class Layout(Sequence[Unit]):
    """The units of one model in forward order.

    Args:
        units: At least one unit, with distinct names.

    Raises:
        ProfileError: There are no units, or two units share a name.
    """

    def __init__(self, units: Sequence[Unit]) -> None:
        self._units = tuple(units)
        names = [unit.name for unit in self._units]
        if not names or len(set(names)) != len(names):
            raise ProfileError("a layout needs at least one unit, and distinct unit names")

    @overload
    def __getitem__(self, index: int) -> Unit: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Unit, ...]: ...
    def __getitem__(self, index: int | slice) -> Unit | tuple[Unit, ...]:
        return self._units[index]

    def __len__(self) -> int:
        return len(self._units)

    def __iter__(self) -> Iterator[Unit]:
        return iter(self._units)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and self._units == other._units

    def __hash__(self) -> int:
        return hash(self._units)

    def __repr__(self) -> str:
        return f"Layout({len(self)} units, {self.n_weights} weights, {self.n_blocks} blocks)"

    def position(self, name: str) -> int:
        """Return the position of the unit called ``name``.

        Raises:
            UnknownNameError: There is no such unit.
        """
        position = self._positions.get(name)
        if position is None:
            raise UnknownNameError(f"unknown unit {name!r}: {suggest_name(name, self._positions)}")
        return position

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {unit.name: i for i, unit in enumerate(self._units)}

    @cached_property
    def counts(self) -> np.ndarray:
        """Items of each unit, ``(n_units,)`` int64."""
        return np.array([unit.count for unit in self._units], dtype=np.int64)

    @cached_property
    def costs(self) -> np.ndarray:
        """Weights per item of each unit, ``(n_units,)`` int64."""
        return np.array([unit.cost for unit in self._units], dtype=np.int64)

    @cached_property
    def zeros(self) -> np.ndarray:
        """Items of each unit that are zero in the dense model, ``(n_units,)`` int64."""
        return np.array([unit.zeros for unit in self._units], dtype=np.int64)

    @cached_property
    def n_weights(self) -> int:
        """Number of weights in all units."""
        return int(self.counts @ self.costs)

    @cached_property
    def n_blocks(self) -> int:
        """Number of decoder blocks that hold a unit."""
        return len({unit.block for unit in self._units})

    @property
    def divisible(self) -> bool:
        """Whether all items have the same cost and every unit has several of them.

        If so, a step can be the same in all units. Units of one item (depth pruning) have no
        uniform share from which steps could start.
        """
        return len(set(self.costs)) == 1 and int(self.counts.min()) > 1

    @cached_property
    def digest(self) -> str:
        """Identifier of the layout, 16 hexadecimal digits."""
        return compute_digest(self.to_json())

    def to_json(self) -> list[dict[str, Any]]:
        """Return the units as JSON objects."""
        return [asdict(unit) for unit in self._units]

    @classmethod
    def from_json(cls, value: Any) -> Layout:
        """Return the layout that `to_json` describes.

        Raises:
            ProfileError: ``value`` does not describe a layout.
        """
        if not isinstance(value, list):
            raise ProfileError(f"not a list of units: {show_value(value)}")
        entries = [
            parse_shape(_UnitShape, each, "not a list of units", ProfileError) for each in value
        ]
        return cls([Unit(**entry.model_dump()) for entry in entries])


class _UnitShape(Shape):
    """A unit as `Layout.to_json` writes it."""

    model_config = ConfigDict(extra="forbid")

    name: str
    block: Count
    role: str
    count: Size
    cost: Size = 1
    zeros: Count = 0
