"""The interface of a sensitivity: the loss of every unit at every level, others dense."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from sparsity_search.errors import ConfigError
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.scores import Scores


class Sensitivity(ABC):
    """Measures or estimates losses. Plugins are frozen keyword-only dataclasses.

    Attributes:
        units: The kinds of units whose losses it can tell; see `models/units/`.
    """

    units: ClassVar[tuple[str, ...]] = ("weights", "width", "heads", "sublayers", "blocks")

    @abstractmethod
    def measure(
        self,
        subject: PrunableModel,
        tokens: Tensor,
        pruner: Pruner,
        tables: Sequence[tuple[int, ...]],
        *,
        seed: int = 0,
    ) -> Scores:
        """Return the loss of each unit at each count of its table, all other units dense.

        Args:
            subject: The dense model; unchanged afterwards.
            tokens: Calibration text, ``(n_sequences, length)`` int64.
            pruner: What removes the items.
            tables: Increasing counts of each unit, beyond its zeros.
            seed: Of all random draws, and of ties among the pruner's scores.

        Raises:
            ConfigError: The units are of a kind that it cannot, or not in linear layers.
            NumericalError: A loss is not finite.
        """

    def check(self, kind: str) -> None:
        """Check that units of a kind can be measured.

        Raises:
            ConfigError: They cannot.
        """
        if kind not in self.units:
            name, kinds = type(self).__name__, ", ".join(self.units)
            raise ConfigError(f"{name} measures {kinds}, not {kind}: choose another sensitivity")
