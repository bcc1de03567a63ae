"""What a local pruner is: one weight, statistics of its inputs and counts give variants."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from sparsity_search.errors import ConfigError
from sparsity_search.statistics import InputStatistics, Statistic
from sparsity_search.variants import Variants


@dataclass(frozen=True, kw_only=True)
class Pruner(ABC):
    """A local pruner. Plugins are frozen keyword-only dataclasses whose fields have defaults.

    Attributes:
        requires: What it has to know about the inputs.
    """

    requires: ClassVar[Statistic] = Statistic.NONE

    @abstractmethod
    def prune(
        self, weight: Tensor, inputs: InputStatistics, counts: Sequence[int], *, seed: int
    ) -> Variants:
        """Return the variants of one weight that have exactly ``counts`` zeros.

        Weights that are zero already are removed first; a count that is not larger than their
        number gives the weight unchanged.

        Args:
            weight: ``(rows, columns)``, any float dtype; it is not modified.
            inputs: Statistics of the tensor that the weight multiplies.
            counts: Numbers of zeros, strictly increasing.
            seed: Decides between equal scores, and nothing else.

        Raises:
            ConfigError: The counts are not strictly increasing, or not within the weight's size.
            NumericalError: The weight or the statistics are not finite.
        """


def check_counts(counts: Sequence[int], weight: Tensor) -> tuple[int, ...]:
    """Return ``counts`` as a tuple if they are legal for ``weight``."""
    bounds = [-1, *counts, weight.numel() + 1]
    if any(low >= high for low, high in pairwise(bounds)):
        raise ConfigError(
            f"counts must increase strictly within 0 … {weight.numel()}, not {list(counts)}"
        )
    return tuple(counts)
