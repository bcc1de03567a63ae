"""The interface of a sensitivity: the loss of every unit at every level, others dense."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.interfaces.units import SupportsUnits
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.scores import Scores


class Sensitivity(SupportsUnits, ABC):
    """Base class of sensitivities, which measure or estimate the losses of single units.

    Rules, which `sparsity_search.testing.sensitivity.SensitivityContract` tests:

    * A plugin is a frozen keyword-only dataclass, and every field has a default. Equal settings
      are equal and hashable, and print as one line.
    * There is a loss for each count. It never falls as more is removed, and a unit that is
      removed whole has a positive loss.
    * Units of a kind that the method is not for are an error.
    * The model's weights are as before afterwards, to the bit; no hook and no gradient is left.
    * Equal arguments give equal losses. The global random state is neither read nor changed.

    Attributes:
        units: The kinds of units whose losses it can measure; see `models/units/`.
        experimental: Why the method is not recommended, with a figure, if it loses to a simpler
            one in the project's own tables. It is shown by ``ls``, and warned of once.
    """

    units: ClassVar[tuple[str, ...]] = ("weights", "width", "heads", "sublayers", "blocks")
    experimental: ClassVar[str] = ""

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
            pruner: Removes the items.
            tables: Increasing counts of each unit, beyond its zeros.
            seed: Of all random draws, and of ties among the pruner's scores.

        Raises:
            ConfigError: The method or the pruner is not for units of this kind, or a unit is not
                made of linear layers.
            NumericalError: A loss is not finite.
        """
