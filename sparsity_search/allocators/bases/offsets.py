"""Offsets of sparsity by role, for allocators whose profile is in their settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from sparsity_search.errors import ConfigError, UnknownNameError, suggest_name
from sparsity_search.profiles.layout import Layout

#: Offsets by role: pairs sorted by role.
Offsets = tuple[tuple[str, float], ...]


def parse_offsets(offsets: Mapping[str, float] | Iterable[tuple[str, float]]) -> Offsets:
    """Return offsets as pairs sorted by role, which are hashable and compare by value.

    Raises:
        ConfigError: Not roles with numbers in ``[-1, 1]``, or a role twice.
    """
    entries = tuple(offsets.items()) if isinstance(offsets, Mapping) else tuple(offsets)
    try:
        found = {role: float(offset) for role, offset in entries}
    except (TypeError, ValueError) as error:
        raise ConfigError(f"offsets must be numbers by role, not {offsets!r}") from error
    check_offsets("offsets", list(found.values()))
    if len(found) < len(entries) or not all(isinstance(role, str) for role in found):
        raise ConfigError(f"offsets must name each role once, not {offsets!r}")
    return tuple(sorted(found.items()))


def check_offsets(setting: str, values: Sequence[float]) -> None:
    """Check differences of sparsities.

    Raises:
        ConfigError: One is not in ``[-1, 1]``.
    """
    if not all(-1 <= value <= 1 for value in values):
        raise ConfigError(f"{setting} must lie in [-1, 1], not {list(values)}")


def get_unit_offsets(layout: Layout, offsets: Offsets) -> np.ndarray:
    """Return the offset of each unit, ``(n_units,)`` float64; 0 for roles that are not named.

    Raises:
        UnknownNameError: No unit has such a role.
    """
    found, roles = dict(offsets), {unit.role for unit in layout}
    for role in found:
        if role not in roles:
            raise UnknownNameError(
                f"offsets: no unit has the role {role!r}: {suggest_name(role, roles)}"
            )
    return np.array([found.get(unit.role, 0.0) for unit in layout], dtype=np.float64)
