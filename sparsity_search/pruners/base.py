"""What a local pruner is: one weight, what is known of it, and counts give variants."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from sparsity_search.errors import ConfigError
from sparsity_search.evidence import Evidence
from sparsity_search.registry import PRUNERS
from sparsity_search.statistics import Statistic
from sparsity_search.variants import Variants


@dataclass(frozen=True, kw_only=True)
class Pruner(ABC):
    """A local pruner. Plugins are frozen keyword-only dataclasses whose fields have defaults."""

    @property
    def requires(self) -> Statistic:
        """What it has to know about the inputs."""
        return Statistic.NONE

    @property
    def needs_gradient(self) -> bool:
        """Whether it has to know the weight's gradient."""
        return False

    @abstractmethod
    def prune(
        self, weight: Tensor, evidence: Evidence, counts: Sequence[int], *, seed: int
    ) -> Variants:
        """Return the variants of one weight that have exactly ``counts`` zeros.

        Weights that are zero already are removed first; a count that is not larger than their
        number gives the weight unchanged.

        Args:
            weight: ``(rows, columns)``, any float dtype; it is not modified.
            evidence: What is known of the weight.
            counts: Numbers of zeros, strictly increasing.
            seed: Decides between equal scores, and nothing else.

        Raises:
            ConfigError: The counts are not strictly increasing, not within the weight's size, or
                not possible in the pruner's pattern.
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


def as_pruner(value: Pruner | str | Mapping[str, Any]) -> Pruner:
    """Return the pruner that a setting of another pruner names.

    Args:
        value: A pruner, a plugin's name, or its name and settings: ``{"name": "wanda", …}``.

    Raises:
        UnknownNameError: There is no such pruner.
        ConfigError: It refuses its settings, or the value is none of these.
    """
    if isinstance(value, Pruner):
        return value
    settings = {"name": value} if isinstance(value, str) else dict(value)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError("a pruner within a pruner needs a name, e.g. mask: {name: wanda}")
    found: Pruner = PRUNERS.create(name, **settings)
    return found
