"""The interface of a local pruner: a weight, its evidence and counts give variants."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from sparsity_search.errors import ConfigError
from sparsity_search.evidence.evidence import Evidence
from sparsity_search.evidence.statistics import Statistic
from sparsity_search.evidence.variants import Variants
from sparsity_search.interfaces.units import SupportsUnits
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.profile import SparsityProfile


@dataclass(frozen=True, kw_only=True)
class Pruner(SupportsUnits, ABC):
    """Base class of local pruners, which prune one unit at a time.

    A walk over the model visits each unit with its evidence: statistics of its inputs, if
    `requires` asks for them, and gradients, if `needs_gradient` does. `prune` then returns the
    unit's variants: the weight at each count of zeros that is asked for. Profiles, supernets and
    sensitivities differ only in the counts.

    Rules, which the contracts in `sparsity_search.testing.pruner` and
    `sparsity_search.testing.structured` test:

    * A plugin is a frozen keyword-only dataclass, and every field has a default. Equal settings
      are equal and hashable, and print as one line.
    * A variant has exactly its count of zeros, in every storage type, with ties, with inputs that
      are always zero, few, or copies of each other. Weights that are zero already go first.
    * It is the same alone as in a table, and with inputs times a constant. It does not depend on
      the seed unless scores are equal.
    * Kept weights change only if `updates` says so. The given weight is never written to.
    * In an N:M pattern each group has its zeros exactly.
    * Weights or statistics that are not finite, and counts or patterns that are not possible,
      are errors.
    * Equal arguments give equal bits. The global random state is neither read nor changed.

    Attributes:
        units: The kinds of units that it prunes, the usual one first; see `models/units/`.
        updates: Whether kept weights change, so that each level is a copy of its own.
        merges: Whether `merge` does anything: then units are not pruned independently, and a
            supernet cannot hold them.
        experimental: Why the method is not recommended, with a figure, if it loses to a simpler
            one in the project's own tables. It is shown by ``ls``, and warned of once.
    """

    experimental: ClassVar[str] = ""
    updates: ClassVar[bool] = False
    merges: ClassVar[bool] = False

    @property
    def requires(self) -> Statistic:
        """The statistics of the inputs that it needs."""
        return Statistic.NONE

    @property
    def needs_gradient(self) -> bool:
        """Whether it needs the weight's gradient."""
        return False

    @property
    def needs_following(self) -> bool:
        """Whether it needs statistics of the layer that reads the weight's output."""
        return False

    @property
    def needs_dense_inputs(self) -> bool:
        """Whether it uses `InputStatistics.cross` where that can be had."""
        return False

    @property
    def groups_inputs(self) -> bool:
        """Whether the groups of its N:M patterns are consecutive inputs of the stored matrix."""
        return True

    def merge(self, subject: PrunableModel, profile: SparsityProfile) -> None:
        """Rewrite what ``profile`` keeps of the dense model before pruning; nothing by default."""
        del subject, profile

    @abstractmethod
    def prune(
        self, weight: Tensor, evidence: Evidence, counts: Sequence[int], *, seed: int
    ) -> Variants:
        """Return the variants of one unit that have exactly ``counts`` zeros.

        Items (weights, or structures) that are zero already are removed first; a count that is
        not larger than their number gives the weight unchanged.

        Args:
            weight: ``(rows, columns)``, any float dtype; it is not modified. For structures, see
                `sparsity_search.evidence.structures.StructureLayout`.
            evidence: What is known of the weight.
            counts: Numbers of zero items, strictly increasing.
            seed: Decides between equal scores, and nothing else.

        Raises:
            ConfigError: The counts are not strictly increasing, not within the weight's size, or
                not possible in the pruner's pattern.
            NumericalError: The weight or the statistics are not finite.
        """


def check_counts(counts: Sequence[int], weight: Tensor) -> tuple[int, ...]:
    """Return ``counts`` as a tuple if they are legal for the single weights of ``weight``."""
    return check_table(counts, weight.numel())


def check_table(counts: Sequence[int], n_items: int) -> tuple[int, ...]:
    """Return ``counts`` as a tuple if they are legal for a unit of ``n_items``."""
    bounds = [-1, *counts, n_items + 1]
    if any(low >= high for low, high in pairwise(bounds)):
        raise ConfigError(
            f"counts must increase strictly within 0 … {n_items}, not {list(counts)}"
        )
    return tuple(counts)
