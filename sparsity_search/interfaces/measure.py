"""The interface of a measure: what each unit saves of it in each of its states."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from sparsity_search.errors import ConfigError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.registry import name_plugin
from sparsity_search.spaces.prices import PriceCurve, Prices


class Measure(ABC):
    """Prices the states of units. Plugins are frozen keyword-only dataclasses.

    The state of a unit is a number of items removed: weights, heads, channels, a whole block. Or
    it is an N:M pattern of its weights. A measure says what a unit saves in a state, in any unit
    of measure; a search of ``--measure`` saves a fraction of what all units cost together.

    Attributes:
        units: The kinds of units that it can price; see `models/units/`.
        prices_patterns: Whether it prices N:M patterns too, by `pattern_savings`.
    """

    units: ClassVar[tuple[str, ...]] = ("width", "heads")
    prices_patterns: ClassVar[bool] = False

    @abstractmethod
    def curves(self, subject: PrunableModel) -> Sequence[PriceCurve]:
        """Return what each unit saves by its items removed, in the layout's order.

        Other units are dense. The first point of a curve is no item removed and nothing saved,
        the last one all items of the unit; in between it may have any points.

        Args:
            subject: The dense model, with units of a kind in `units`; unchanged afterwards.

        Raises:
            ConfigError: The units are unlike each other, where that is needed.
            ModelError: The architecture cannot be made smaller as it needs.
        """

    def pattern_savings(self, subject: PrunableModel, pattern: str) -> Sequence[float]:
        """Return what each unit saves in a pattern, in the unit of measure of `curves`.

        Args:
            subject: The dense model, with units of single weights; unchanged afterwards.
            pattern: ``N:M``: of M consecutive inputs N weights are kept.

        Returns:
            Finite numbers in the layout's order, not negative.

        Raises:
            ConfigError: The measure does not price patterns.
        """
        del subject
        raise ConfigError(f"{name_plugin(self)} does not price the pattern {pattern}")

    def check(self, kind: str, patterns: Sequence[str] = ()) -> None:
        """Check that units of a kind can be priced, and N:M patterns of them.

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
                "measure, or write what each pattern saves into the space"
            )

    def price(self, subject: PrunableModel, name: str, patterns: Sequence[str] = ()) -> Prices:
        """Return the prices of a model's units.

        Args:
            subject: The dense model; unchanged afterwards.
            name: The measure's, for records.
            patterns: N:M patterns to price besides.

        Raises:
            ConfigError: The units or patterns cannot be priced, or nothing is saved.
            ModelError: The architecture cannot be made smaller as it needs.
        """
        self.check(subject.units, patterns)
        savings = {pattern: self.pattern_savings(subject, pattern) for pattern in patterns}
        return Prices(subject.layout, name, self.curves(subject), savings)
