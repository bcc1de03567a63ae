"""The interface of a measure: what each unit saves of it with each number of items removed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from sparsity_search.errors import ConfigError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.spaces.prices import PriceCurve


class Measure(ABC):
    """Prices units. Plugins are frozen keyword-only dataclasses.

    Attributes:
        units: The kinds of units that it can price; see `models/units/`.
    """

    units: ClassVar[tuple[str, ...]] = ("width", "heads")

    @abstractmethod
    def curves(self, subject: PrunableModel) -> Sequence[PriceCurve]:
        """Return what each unit saves, in the layout's order, all others dense.

        Args:
            subject: The dense model; unchanged afterwards.

        Raises:
            ConfigError: The units are of a kind that it cannot price, or unlike each other.
            ModelError: The architecture cannot be made smaller as it needs.
        """

    def check(self, kind: str) -> None:
        """Check that units of a kind can be priced.

        Raises:
            ConfigError: They cannot.
        """
        if kind not in self.units:
            name, kinds = type(self).__name__.lower(), " or ".join(self.units)
            raise ConfigError(f"a budget in {name} needs --units {kinds}, not {kind}")
