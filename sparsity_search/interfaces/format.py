"""The interface of a file format of profiles, and ratios by name as exact counts."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from sparsity_search.errors import ConfigError, ProfileError, nearest
from sparsity_search.profiles.budget import Bounds, fill
from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.profiles.profile import SparsityProfile, from_counts


@dataclass(frozen=True)
class Document:
    """What a file says.

    Attributes:
        profile: The profile.
        facts: What else is known, e.g. ``removes`` (the kind of units) and ``model``; only some
            formats keep it.
    """

    profile: SparsityProfile
    facts: Mapping[str, Any] = field(default_factory=dict)


class Format(ABC):
    """Reads and writes one kind of file. Plugins are frozen keyword-only dataclasses.

    Attributes:
        suffixes: Ends of file names that stand for this format where no other claims them.
        sized: Whether the file holds the sizes of its units: it is read without a layout, and
            nothing is rounded.
        patterned: Whether it can say that a unit's zeros are N:M.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()
    sized: ClassVar[bool] = False
    patterned: ClassVar[bool] = False

    @abstractmethod
    def read(self, text: str, layout: Layout | None = None) -> Document:
        """Return what ``text`` says.

        Args:
            text: The whole file.
            layout: The units that it is about; a sized format does not look at it.

        Raises:
            ProfileError: The text is not of this format, or about other units.
            ConfigError: A layout or a setting is needed.
        """

    @abstractmethod
    def write(self, document: Document) -> str:
        """Return the whole file.

        Raises:
            ProfileError: This format cannot hold the profile.
            ConfigError: A setting is needed.
        """


def needed(layout: Layout | None) -> Layout:
    """Return the layout that a format without sizes needs.

    Raises:
        ConfigError: There is none.
    """
    if layout is None:
        raise ConfigError(
            "the file names units but not their sizes: give --model MODEL, or --reference PROFILE "
            "for a profile.json of the same model"
        )
    return layout


def single_weights(profile: SparsityProfile, what: str) -> None:
    """Check that a profile removes single weights.

    Raises:
        ProfileError: It removes structures.
    """
    if any(unit.cost != 1 for unit in profile.layout):
        raise ProfileError(f"{what} prune single weights, and this profile removes structures")


def whole_layers(layout: Layout) -> tuple[Layout, np.ndarray]:
    """Return the layout with the rows of each fused projection joined, and where each unit went.

    Other tools know layers, not rows of them.

    Returns:
        The layers, and the position among them of each unit, ``(n_units,)`` int64.
    """
    names = [_layer(unit.name) for unit in layout]
    members: dict[str, list[Unit]] = {}
    for name, unit in zip(names, layout, strict=True):
        members.setdefault(name, []).append(unit)
    layers = Layout(
        [
            replace(
                units[0],
                name=name,
                count=sum(unit.count for unit in units),
                zeros=sum(unit.zeros for unit in units),
            )
            for name, units in members.items()
        ]
    )
    return layers, np.array([layers.position(name) for name in names])


def of_whole_layers(profile: SparsityProfile) -> SparsityProfile:
    """Return what a profile removes from each layer, see `whole_layers`."""
    layers, places = whole_layers(profile.layout)
    removed = np.zeros(len(layers), dtype=np.int64)
    np.add.at(removed, places, np.array(profile.removed))
    return from_counts(layers, removed.tolist())


def from_sparsities(layout: Layout, sparsities: np.ndarray) -> SparsityProfile:
    """Return the counts nearest to sparsities, which together remove what those mean.

    Args:
        layout: The units; what is zero in them already is removed in any case.
        sparsities: Each in ``[0, 1]``, ``(n_units,)``.
    """
    bounds = Bounds.of(layout)
    meant = round(float(sparsities @ (layout.counts * layout.costs)))
    return from_counts(layout, fill(layout, sparsities, bounds, meant))


def by_name(layout: Layout, values: Mapping[Any, Any]) -> np.ndarray:
    """Return the number that each unit is given, ``(n_units,)`` float64.

    Args:
        layout: The units.
        values: Finite numbers by the name of a unit, of a module that holds units
            (``model.layers.3``), or by the index of a block.

    Raises:
        ProfileError: A key names no unit, a unit is named twice or not at all, or a value is no
            finite number.
    """
    members = _members(layout)
    found = np.full(len(layout), math.nan)
    for key, value in values.items():
        units = members.get(str(key))
        if units is None:
            raise ProfileError(f"no unit is called {str(key)!r}: {_like(str(key), layout)}")
        number = finite(value, str(key))
        twice = [i for i in units if not math.isnan(found[i])]
        if twice:
            raise ProfileError(f"{layout[twice[0]].name} is given a value twice, by {key!r} too")
        found[units] = number
    missing = [unit.name for unit, value in zip(layout, found, strict=True) if math.isnan(value)]
    if missing:
        raise ProfileError(f"no value for {len(missing)} units, the first is {missing[0]}")
    return found


def ratios_by_name(layout: Layout, values: Mapping[Any, Any]) -> np.ndarray:
    """Return the sparsity that each unit is given, as `by_name` does.

    Raises:
        ProfileError: As `by_name`, or a sparsity is not within ``[0, 1]``.
    """
    ratios = by_name(layout, values)
    for unit, ratio in zip(layout, ratios, strict=True):
        if not 0 <= ratio <= 1:
            raise ProfileError(f"the sparsity of {unit.name} must be within 0 and 1, not {ratio}")
    return ratios


def finite(value: Any, key: str) -> float:
    """Return a value of a file as a finite number.

    Raises:
        ProfileError: It is none.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ProfileError(f"{key}: {value!r} is not a finite number")
    return number


def _members(layout: Layout) -> dict[str, list[int]]:
    """Return the units that each key stands for, by position."""
    found: dict[str, list[int]] = {}
    for index, unit in enumerate(layout):
        parts = _layer(unit.name).split(".")
        keys = {".".join(parts[: end + 1]) for end in range(len(parts))} | {str(unit.block)}
        for key in keys:
            found.setdefault(key, []).append(index)
    exact = {unit.name: [index] for index, unit in enumerate(layout)}
    return found | exact


def _layer(name: str) -> str:
    """Return the name of the layer that a unit is, or whose rows it is."""
    return name.partition("[")[0]


def _like(key: str, layout: Layout) -> str:
    """Return a hint for a key that names no unit: names of the layout, but not all of them."""
    close = nearest(key, [unit.name for unit in layout]).partition(" Known:")[0]
    return close if close.startswith("did") else f"the first unit is {layout[0].name}"
