"""A layer-wise sparsity profile: the number of items removed from each unit.

Counts are integers, so the requested and the realised profile are the same: budgets are met
exactly, and equality and hashing are exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ConfigDict

from sparsity_search.errors import ProfileError
from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.profiles.patterns import Pattern
from sparsity_search.utils.files import compute_digest
from sparsity_search.utils.shapes import Count, Shape, Size, parse_shape
from sparsity_search.utils.versioned import VersionedJson

#: Largest difference of a stated sparsity from that of the counts; other tools round it.
_TOLERANCE = 1e-4


class _UnitShape(Shape):
    """A unit in the file of a profile."""

    model_config = ConfigDict(extra="forbid")

    removed: Count
    of: Size
    block: Count | None = None
    role: str = ""
    weights_each: Size | None = None
    sparsity: float | None = None
    pattern: str = ""


class _SizedUnitShape(Shape):
    """What the file must say of each unit, so that it can be read without a model."""

    block: Count
    role: str
    of: Size
    weights_each: Size


class _ProfileShape(Shape):
    """The file of a profile."""

    units: dict[str, _UnitShape]
    layout: str = ""
    removed: Count | None = None
    weights: Size | None = None
    sparsity: float | None = None
    removes: str | None = None


#: Format of a profile's file, ``profile.json``.
PROFILE_JSON = VersionedJson("a sparsity profile", 1, _ProfileShape, ProfileError)


@dataclass(frozen=True)
class SparsityProfile:
    """Items removed from each unit of a layout.

    Args:
        layout: The units.
        removed: Items removed from each unit, in the layout's order.
        patterns: Pattern of the zeros of each unit: ``N:M``, or ``""`` for none. Empty if no
            unit has a pattern.

    Raises:
        ProfileError: The number of counts or patterns is wrong, a count lies outside
            ``[0, unit.count]``, or it does not match the unit's pattern.

    >>> from sparsity_search.profiles.layout import Unit
    >>> layout = Layout([Unit(name="a", block=0, role="q", count=10),
    ...                  Unit(name="b", block=0, role="up", count=30)])
    >>> SparsityProfile(layout, (5, 25)).sparsity
    0.75
    """

    layout: Layout
    removed: tuple[int, ...]
    patterns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not any(self.patterns):
            object.__setattr__(self, "patterns", ())
        if self.patterns and len(self.patterns) != len(self.layout):
            raise ProfileError(f"{len(self.patterns)} patterns for {len(self.layout)} units")
        if len(self.removed) != len(self.layout):
            raise ProfileError(f"{len(self.removed)} counts for {len(self.layout)} units")
        for unit, removed in zip(self.layout, self.removed, strict=True):
            if not 0 <= removed <= unit.count:
                raise ProfileError(f"{unit.name}: {removed} of {unit.count} cannot be removed")
        for unit, (removed, pattern) in zip(self.layout, self.states, strict=True):
            if pattern and removed != count_pattern_zeros(unit, pattern):
                raise ProfileError(
                    f"{unit.name}: {removed} of {unit.count} removed is not {pattern}"
                )

    @cached_property
    def states(self) -> tuple[tuple[int, str], ...]:
        """Items removed and pattern of each unit."""
        patterns = self.patterns or ("",) * len(self.removed)
        return tuple(zip(self.removed, patterns, strict=True))

    @property
    def n_removed(self) -> int:
        """Weights removed in all units."""
        return int(np.array(self.removed, dtype=np.int64) @ self.layout.costs)

    @property
    def sparsity(self) -> float:
        """Fraction of the prunable weights that is removed."""
        return self.n_removed / self.layout.n_weights

    @property
    def sparsities(self) -> np.ndarray:
        """Fraction removed from each unit, ``(n_units,)`` float64."""
        return np.asarray(np.array(self.removed, dtype=np.float64) / self.layout.counts)

    @cached_property
    def digest(self) -> str:
        """Identifier of layout, counts and patterns, 16 hexadecimal digits."""
        patterns = [list(self.patterns)] if self.patterns else []
        return compute_digest([self.layout.digest, list(self.removed), *patterns])

    def grouped(self, by: Literal["block", "role"]) -> dict[int | str, float]:
        """Return the sparsity of each block or role, weighted by parameters."""
        removed: dict[int | str, int] = {}
        sizes: dict[int | str, int] = {}
        for unit, count in zip(self.layout, self.removed, strict=True):
            key = getattr(unit, by)
            removed[key] = removed.get(key, 0) + count * unit.cost
            sizes[key] = sizes.get(key, 0) + unit.size
        return {key: removed[key] / sizes[key] for key in sizes}

    def to_json(self) -> dict[str, Any]:
        """Return the profile as a JSON object: totals, and the counts of each unit."""
        return {
            "format": PROFILE_JSON.version,
            "layout": self.layout.digest,
            "removed": self.n_removed,
            "weights": self.layout.n_weights,
            "sparsity": self.sparsity,
            "units": {
                unit.name: {
                    "block": unit.block,
                    "role": unit.role,
                    "removed": removed,
                    "of": unit.count,
                    "weights_each": unit.cost,
                    "sparsity": removed / unit.count,
                    **({"pattern": pattern} if pattern else {}),
                }
                for unit, (removed, pattern) in zip(self.layout, self.states, strict=True)
            },
        }

    def save(self, path: Path, facts: Mapping[str, Any] | None = None) -> None:
        """Write the profile to a JSON file, atomically.

        Args:
            path: The file.
            facts: Further entries, such as where the profile comes from.
        """
        PROFILE_JSON.write(path, {**self.to_json(), **(facts or {})})

    @classmethod
    def load(cls, path: Path, layout: Layout | None = None) -> SparsityProfile:
        """Return the profile in a JSON file.

        Args:
            path: The file.
            layout: The units of the model that it is for; by default those that it describes.

        Raises:
            ConfigError: The file cannot be read.
            ProfileError: It is not a profile, or of another model.
        """
        value = PROFILE_JSON.read(path)
        return cls.from_json(read_layout(value) if layout is None else layout, value)

    @classmethod
    def from_json(cls, layout: Layout, value: Any) -> SparsityProfile:
        """Return the profile of ``layout`` that a JSON object describes.

        Raises:
            ProfileError: ``value`` is not a profile, has another format, or is of another model.
        """
        stored = _ProfileShape.model_validate(PROFILE_JSON.check(value))
        _check_same_model(layout, stored)
        entries = [stored.units[unit.name] for unit in layout]
        removed = tuple(entry.removed for entry in entries)
        profile = cls(layout, removed, tuple(entry.pattern for entry in entries))
        _check_totals(profile, stored)
        return profile


def read_layout(value: Any) -> Layout:
    """Return the units that a profile's JSON object describes.

    It does not say how many weights were zero before: its units have none.

    Raises:
        ProfileError: It describes none, or not their sizes.
    """
    units = []
    for name, entry in PROFILE_JSON.check(value)["units"].items():
        each = parse_shape(
            _SizedUnitShape, entry, f"not {PROFILE_JSON.kind}: {name}", ProfileError
        )
        units.append(
            Unit(
                name=name,
                block=each.block,
                role=each.role,
                count=each.of,
                cost=each.weights_each,
            )
        )
    return Layout(units)


def _check_same_model(layout: Layout, stored: _ProfileShape) -> None:
    """Check that a file has the units of a layout; roles may differ, which users can state."""
    names = {unit.name for unit in layout}
    missing, unknown = sorted(names - stored.units.keys()), sorted(stored.units.keys() - names)
    if missing or unknown:
        example = f"it lacks {missing[0]}" if missing else f"it has {unknown[0]}"
        raise ProfileError(
            f"the profile is of another model: {example} "
            f"({len(missing)} units missing, {len(unknown)} unknown)"
        )
    for unit in layout:
        entry = stored.units[unit.name]
        for what, here, there in (
            ("items", unit.count, entry.of),
            ("weights in each item", unit.cost, entry.weights_each),
            ("as its block", unit.block, entry.block),
        ):
            if there not in (None, here):
                raise ProfileError(
                    f"the profile is of another model: {unit.name} has {here} {what} here, "
                    f"{there} there"
                )


def _check_totals(profile: SparsityProfile, stored: _ProfileShape) -> None:
    """Check that what a file states beside its counts is what they are."""
    for key, stated, counted in (
        ("removed", stored.removed, profile.n_removed),
        ("weights", stored.weights, profile.layout.n_weights),
        ("sparsity", stored.sparsity, profile.sparsity),
    ):
        if stated is not None and abs(stated - counted) > (_TOLERANCE if key == "sparsity" else 0):
            raise ProfileError(
                f"corrupt profile: its units do not add up to its {key} {stated}, but to {counted}"
            )
    for unit, sparsity in zip(profile.layout, profile.sparsities.tolist(), strict=True):
        stated = stored.units[unit.name].sparsity
        if stated is not None and abs(stated - sparsity) > _TOLERANCE:
            raise ProfileError(
                f"corrupt profile: {unit.name} has sparsity {sparsity} by its counts, not {stated}"
            )


def from_counts(
    layout: Layout, removed: Sequence[int] | np.ndarray, patterns: Sequence[str] = ()
) -> SparsityProfile:
    """Return a profile from any sequence of integers and, optionally, patterns."""
    return SparsityProfile(layout, tuple(int(count) for count in removed), tuple(patterns))


def count_pattern_zeros(unit: Unit, pattern: str) -> int:
    """Return the zeros of a unit in which every ``M`` consecutive inputs keep ``N`` weights.

    Args:
        unit: A unit of single weights.
        pattern: ``N:M``.

    Raises:
        ProfileError: The pattern is not legal, or the unit is not a whole number of groups.
    """
    groups = Pattern.parse_groups(pattern)
    whole = groups is not None and unit.cost == 1 and groups.fits(unit.count)
    if groups is None or groups.keep in (None, groups.group) or not whole:
        raise ProfileError(
            f"{unit.name}: {unit.count} items of {unit.cost} weights cannot be {pattern!r}"
        )
    (zeros,) = groups.counts(unit.count)
    return zeros
