"""Scores: the loss of each unit by items removed, measured once and usable for any budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.interpolate import PchipInterpolator  # type: ignore[import-untyped]

from sparsity_search.errors import ProfileError
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.utils.shapes import Count, Shape
from sparsity_search.utils.versioned import VersionedJson

#: Largest difference of pairs from symmetry, as a fraction of the greatest: sums are rounded.
_ASYMMETRY = 1e-4


class _LossesShape(Shape):
    """The losses of a unit in the file of scores."""

    counts: list[Count]
    losses: list[float]


class _ScoresShape(Shape):
    """The file of scores."""

    layout: list[Any]
    units: dict[str, _LossesShape]
    pairs: str | None = None


#: Format of the file of scores.
SCORES_JSON = VersionedJson("a table of scores", 1, _ScoresShape, ProfileError)


@dataclass(frozen=True, eq=False)
class Scores:
    """The loss that each unit adds at a table of counts, all other units dense.

    Entries are the pairs of a unit and one of its counts, unit by unit.

    Attributes:
        layout: The units.
        counts: Items removed at each level of each unit, ``(n_levels,)`` int64 and increasing.
        losses: Loss at each level, ``(n_levels,)`` float64 each, not negative, in the
            sensitivity's unit of measure.
        pairs: Loss of two entries of different units in addition to the sum of both,
            ``(n_entries, n_entries)`` float32, symmetric, zero within a unit; None if not known.
        facts: Record of the measurement, for artefacts.

    Raises:
        ProfileError: The arrays do not fit the layout or each other.
    """

    layout: Layout
    counts: tuple[np.ndarray, ...]
    losses: tuple[np.ndarray, ...]
    pairs: np.ndarray | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.layout) == len(self.counts) == len(self.losses):
            raise ProfileError(f"scores need counts and losses of all {len(self.layout)} units")
        for unit, counts, losses in zip(self.layout, self.counts, self.losses, strict=True):
            legal = len(counts) and all(a < b for a, b in pairwise([-1, *counts, unit.count + 1]))
            if not legal or len(counts) != len(losses):
                raise ProfileError(
                    f"{unit.name}: scores need increasing counts, and one loss each"
                )
            if not np.isfinite(losses).all() or (losses < 0).any():
                raise ProfileError(f"{unit.name}: losses must be finite and not negative")
        if self.pairs is not None:
            _check_pairs(self.pairs, sum(map(len, self.counts)))

    @cached_property
    def curves(self) -> tuple[LossCurve, ...]:
        """The losses of each unit at any count."""
        return tuple(
            LossCurve.through(unit.zeros, counts, losses)
            for unit, counts, losses in zip(self.layout, self.counts, self.losses, strict=True)
        )

    def loss(self, profile: SparsityProfile) -> float:
        """Return the predicted loss of a profile: the sum over units, without pairs."""
        counted = zip(self.curves, profile.removed, strict=True)
        return float(sum(curve(np.array([count]))[0] for curve, count in counted))

    def to_json(self) -> dict[str, Any]:
        """Return all but the pairs as a JSON object."""
        return {
            **self.facts,
            "format": SCORES_JSON.version,
            "layout": self.layout.to_json(),
            "units": {
                unit.name: {"counts": counts.tolist(), "losses": losses.tolist()}
                for unit, counts, losses in zip(self.layout, self.counts, self.losses, strict=True)
            },
        }

    @classmethod
    def from_json(cls, value: Any, pairs: np.ndarray | None = None) -> Scores:
        """Return the scores that a JSON object describes.

        Raises:
            ProfileError: ``value`` does not describe scores, or has another format.
        """
        facts = dict(SCORES_JSON.check(value))
        del facts["format"]
        units, layout = facts.pop("units"), Layout.from_json(facts.pop("layout"))
        names = [unit.name for unit in layout]
        if units.keys() != set(names):
            other = min(units.keys() ^ set(names))
            raise ProfileError(
                f"not {SCORES_JSON.kind}: its layout and its losses differ in {other}"
            )
        entries = [units[name] for name in names]
        counts = tuple(np.array(entry["counts"], dtype=np.int64) for entry in entries)
        losses = tuple(np.array(entry["losses"], dtype=np.float64) for entry in entries)
        return cls(layout, counts, losses, pairs, facts)


def _check_pairs(pairs: np.ndarray, n_entries: int) -> None:
    if pairs.shape != (n_entries, n_entries):
        raise ProfileError(f"pairs must be {n_entries} by {n_entries}, as there are entries")
    if pairs.dtype.kind != "f" or not np.isfinite(pairs).all():
        raise ProfileError("pairs must be finite numbers in floating point")
    if np.abs(pairs - pairs.T).max() > _ASYMMETRY * np.abs(pairs).max():
        raise ProfileError("pairs must be symmetric")


@dataclass(frozen=True, eq=False)
class LossCurve:
    """The loss of one unit between and beyond its measured counts.

    The square root of the loss is interpolated: for a loss of second order it is the size of a
    change, smooth and almost straight where the loss itself bends. Monotone cubic interpolation
    (PCHIP) makes it rise if the measured losses rise.

    Attributes:
        counts: Counts at which the loss is known, ``(n,)`` int64, increasing.
        roots: Square root of the loss at each count, ``(n,)``.
    """

    counts: np.ndarray
    roots: np.ndarray

    @classmethod
    def through(cls, zeros: int, counts: np.ndarray, losses: np.ndarray) -> LossCurve:
        """Return the curve through measured losses; nothing is lost up to ``zeros`` items."""
        beyond = counts > zeros
        return cls(
            np.concatenate([[zeros], counts[beyond]]),
            np.sqrt(np.concatenate([[0.0], losses[beyond]])),
        )

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """Return the losses at any counts; the root is extrapolated linearly at the end."""
        if len(self.counts) == 1:
            return np.zeros(len(counts))
        at = np.maximum(counts, self.counts[0])
        inside = np.minimum(at, self.counts[-1])
        roots = self._between(inside)
        slope = (self.roots[-1] - self.roots[-2]) / (self.counts[-1] - self.counts[-2])
        return np.asarray((roots + max(slope, 0.0) * (at - inside)) ** 2)

    @cached_property
    def _between(self) -> Callable[[np.ndarray], np.ndarray]:
        """The roots between the measured counts."""
        found: Callable[[np.ndarray], np.ndarray] = PchipInterpolator(self.counts, self.roots)
        return found


def build_count_tables(layout: Layout, sparsities: Sequence[float]) -> tuple[tuple[int, ...], ...]:
    """Return the counts of each unit at some sparsities, increasing, beyond its zeros.

    >>> from sparsity_search.profiles.layout import Unit
    >>> layout = Layout([Unit(name="a", block=0, role="q", count=10, zeros=2)])
    >>> build_count_tables(layout, [0.1, 0.5, 1.0])
    ((5, 10),)
    """
    found = []
    for unit in layout:
        counts = {round(sparsity * unit.count) for sparsity in sparsities}
        found.append(tuple(sorted(c for c in counts if c > unit.zeros)) or (unit.count,))
    return tuple(found)
