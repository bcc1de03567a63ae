"""Layers by name, as other tools' files have them, and their ratios as exact counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from sparsity_search.errors import ConfigError, ProfileError, show_value, suggest_name
from sparsity_search.profiles.budget import Bounds, round_to_budget
from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.profiles.profile import SparsityProfile, from_counts


def require_layout(layout: Layout | None) -> Layout:
    """Return the layout.

    Raises:
        ConfigError: It is None, and the format has no sizes.
    """
    if layout is None:
        raise ConfigError(
            "the file names units but not their sizes: give --model MODEL, or --reference PROFILE "
            "for a profile.json of the same model"
        )
    return layout


def check_single_weights(profile: SparsityProfile, what: str) -> None:
    """Check that a profile removes single weights.

    Raises:
        ProfileError: It removes structures.
    """
    if any(unit.cost != 1 for unit in profile.layout):
        raise ProfileError(f"{what} prune single weights, and this profile removes structures")


def join_rows(layout: Layout) -> tuple[Layout, np.ndarray]:
    """Join the rows of each fused projection into one unit, since other tools name whole layers.

    Returns:
        The layers, and the position among them of each unit, ``(n_units,)`` int64.
    """
    names = [_layer_of(unit.name) for unit in layout]
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


def sum_rows(profile: SparsityProfile) -> SparsityProfile:
    """Return a profile with the counts of each layer's rows added up, see `join_rows`."""
    layers, places = join_rows(profile.layout)
    removed = np.zeros(len(layers), dtype=np.int64)
    np.add.at(removed, places, np.array(profile.removed))
    return from_counts(layers, removed.tolist())


def round_to_counts(layout: Layout, sparsities: np.ndarray) -> SparsityProfile:
    """Return the profile nearest to sparsities that removes as much in all as they do.

    Args:
        layout: The units; their present zeros are removed in any case.
        sparsities: Each in ``[0, 1]``, ``(n_units,)``.
    """
    bounds = Bounds.of(layout)
    total = round(float(sparsities @ (layout.counts * layout.costs)))
    return from_counts(layout, round_to_budget(layout, sparsities, bounds, total))


def match_values(layout: Layout, values: Mapping[Any, Any]) -> np.ndarray:
    """Return the value of each unit, ``(n_units,)`` float64.

    Args:
        layout: The units.
        values: Finite numbers by the name of a unit, of a module that holds units
            (``model.layers.3``), or by the index of a block.

    Raises:
        ProfileError: A key names no unit, a unit is named twice or not at all, or a value is no
            finite number.
    """
    members = _list_members(layout)
    matched = np.full(len(layout), math.nan)
    for key, value in values.items():
        units = members.get(str(key))
        if units is None:
            raise ProfileError(f"no unit is called {str(key)!r}: {_suggest(str(key), layout)}")
        number = parse_number(value, str(key))
        twice = [i for i in units if not math.isnan(matched[i])]
        if twice:
            raise ProfileError(f"{layout[twice[0]].name} is given a value twice, by {key!r} too")
        matched[units] = number
    missing = [unit.name for unit, value in zip(layout, matched, strict=True) if math.isnan(value)]
    if missing:
        raise ProfileError(f"no value for {len(missing)} units, the first is {missing[0]}")
    return matched


def match_ratios(layout: Layout, values: Mapping[Any, Any]) -> np.ndarray:
    """Return the sparsity of each unit, ``(n_units,)``, see `match_values`.

    Raises:
        ProfileError: As `match_values`, or a sparsity is not within ``[0, 1]``.
    """
    ratios = match_values(layout, values)
    for unit, ratio in zip(layout, ratios, strict=True):
        if not 0 <= ratio <= 1:
            raise ProfileError(f"the sparsity of {unit.name} must be within 0 and 1, not {ratio}")
    return ratios


def parse_number(value: Any, key: str) -> float:
    """Return a value of a file as a finite number.

    Raises:
        ProfileError: It is no finite number; the message names ``key``.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ProfileError(f"{key}: {show_value(value)} is not a finite number")
    return number


def _list_members(layout: Layout) -> dict[str, list[int]]:
    """Return the positions of the units that each key stands for."""
    members: dict[str, list[int]] = {}
    for index, unit in enumerate(layout):
        parts = _layer_of(unit.name).split(".")
        keys = {".".join(parts[: end + 1]) for end in range(len(parts))} | {str(unit.block)}
        for key in keys:
            members.setdefault(key, []).append(index)
    exact = {unit.name: [index] for index, unit in enumerate(layout)}
    return members | exact


def _layer_of(name: str) -> str:
    """Return the name of a unit's layer: without the rows that it is of."""
    return name.partition("[")[0]


def _suggest(key: str, layout: Layout) -> str:
    """Return a hint for a key that names no unit."""
    close = suggest_name(key, [unit.name for unit in layout]).partition(" Known:")[0]
    return close if close.startswith("did") else f"the first unit is {layout[0].name}"
