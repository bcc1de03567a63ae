"""The interface of a measure: the savings of each unit in each of its states."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from sparsity_search.errors import ConfigError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.registry import name_plugin
from sparsity_search.spaces.prices import PriceCurve, Prices


class Measure(ABC):
    """A measure of the cost of units. Plugins are frozen keyword-only dataclasses.

    The state of a unit is a number of items removed (weights, heads, channels, a whole block), or
    an N:M pattern of its weights. A measure gives the saving of a unit in a state, in any unit of
    measure. A search with ``--measure`` saves a fraction of the total cost of all units.

    Attributes:
        units: Kinds of units that it can price; see `models/units/`.
        prices_patterns: Whether it also prices N:M patterns, by `pattern_savings`.
    """

    units: ClassVar[tuple[str, ...]] = ("width", "heads")
    prices_patterns: ClassVar[bool] = False

    @abstractmethod
    def curves(self, subject: PrunableModel) -> Sequence[PriceCurve]:
        """Return the saving of each unit by its items removed, in the layout's order.

        Other units are dense. A curve begins at no items removed and nothing saved, and ends at
        all items of the unit; it may have any points in between.

        Args:
            subject: The dense model, with units of a kind in `units`; unchanged afterwards.

        Raises:
            ConfigError: The measure needs units of one size, and these differ.
            ModelError: The measure needs a smaller model, which the architecture does not allow.
        """

    def pattern_savings(self, subject: PrunableModel, pattern: str) -> Sequence[float]:
        """Return the saving of each unit in a pattern, in the unit of measure of `curves`.

        Args:
            subject: The dense model, with units of single weights; unchanged afterwards.
            pattern: Pattern ``N:M``, which keeps N weights of M consecutive inputs.

        Returns:
            Finite numbers in the layout's order, not negative.

        Raises:
            ConfigError: The measure does not price patterns.
        """
        del subject
        raise ConfigError(f"{name_plugin(self)} does not price the pattern {pattern}")

    def check(self, kind: str, patterns: Sequence[str] = ()) -> None:
        """Check that units of a kind, and N:M patterns of them, can be priced.

        Raises:
            ConfigError: They cannot.
        """
        name = name_plugin(self)
        if kind not in self.units:
            kinds = " or ".join(self.units)
            raise ConfigError(f"a budget in {name} needs --units {kinds}, not {kind}")
        if patterns and not self.prices_patterns:
            raise ConfigError(
                f"{name} does not price N:M patterns such as {patterns[0]}: name another "
                "measure, or write the saving of each pattern into the space"
            )

    def price(self, subject: PrunableModel, name: str, patterns: Sequence[str] = ()) -> Prices:
        """Return the prices of a model's units.

        Args:
            subject: The dense model; unchanged afterwards.
            name: Name of the measure, for records.
            patterns: N:M patterns to price in addition.

        Raises:
            ConfigError: The units or patterns cannot be priced, or nothing is saved.
            ModelError: The measure needs a smaller model, which the architecture does not allow.
        """
        self.check(subject.units, patterns)
        savings = {pattern: self.pattern_savings(subject, pattern) for pattern in patterns}
        return Prices(subject.layout, name, self.curves(subject), savings)
