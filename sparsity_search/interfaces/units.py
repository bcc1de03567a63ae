"""Which kinds of units a plugin is for."""

from __future__ import annotations

from typing import ClassVar

from sparsity_search.errors import ConfigError
from sparsity_search.registry import name_plugin

#: Every kind of units of the package; see `models/units/`.
ALL_UNITS = ("weights", "width", "heads", "sublayers", "blocks", "experts")


class SupportsUnits:
    """A plugin that is for some kinds of units.

    Attributes:
        units: The kinds of units that it is for, the usual one first; see `models/units/`.
    """

    units: ClassVar[tuple[str, ...]] = ("weights",)

    def check_units(self, kind: str) -> None:
        """Check that this plugin, and those that it holds in its fields, are for a kind of units.

        Raises:
            ConfigError: One is not; the message names it and the kinds that it is for.
        """
        if kind not in self.units:
            *others, last = self.units
            kinds = f"{', '.join(others)} or {last}" if others else last
            raise ConfigError(
                f"{name_plugin(self)} needs units {kinds}, not {kind}: "
                "choose these with --units, or another method"
            )
        for part in vars(self).values():
            if isinstance(part, SupportsUnits):
                part.check_units(kind)
