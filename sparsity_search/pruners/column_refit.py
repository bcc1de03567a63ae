"""The exact least-squares consumer for structures that another pruner chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparsity_search.errors import ConfigError
from sparsity_search.evidence.evidence import Evidence
from sparsity_search.evidence.variants import StructuredVariants
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.pruners.bases.columns import ColumnPruner, find_order, is_nested
from sparsity_search.pruners.bases.structured import StructuredPruner, get_structure_layout
from sparsity_search.registry import PRUNERS, plugin_field


@dataclass(frozen=True, kw_only=True)
class ColumnRefitPruner(ColumnPruner):
    """Take another pruner's structures, and the consumer that is best with the rest.

    With the columns in order of importance and ``H = L Lᵀ``, keeping ``S`` and removing ``P``
    gives ``W_S + W_P L_PS L_SS⁻¹``: the least-squares weights ``H_SS⁻¹ (H W)_S``. Nested sets
    share the one factor. What the other pruner does to weights and biases is not taken.

    Attributes:
        mask: The pruner of structures whose choice is taken.
    """

    mask: Pruner = plugin_field(PRUNERS, "wanda_sp")

    def __post_init__(self) -> None:
        super().__post_init__()
        mask = self.mask
        if not set(mask.units) & set(self.units):
            wanted = " or ".join(self.units)
            raise ConfigError(f"mask must be a pruner of {wanted}, e.g. wanda_sp, not {mask}")

    @property
    def needs_gradient(self) -> bool:
        """Whether the mask's source needs it."""
        return self.mask.needs_gradient

    @property
    def needs_following(self) -> bool:
        """Whether the mask's source needs it."""
        return self.mask.needs_following

    @torch.no_grad()
    def prune(
        self, weight: Tensor, evidence: Evidence, counts: Sequence[int], *, seed: int
    ) -> StructuredVariants:
        """Return the other pruner's sets with refitted consumers, see `Pruner.prune`."""
        shape = get_structure_layout(evidence)
        chosen = self._chosen(weight, evidence, counts, seed)
        existing = int(shape.empty(weight).sum())
        found = self._compensated(weight, evidence, chosen.removed, existing)
        notes = tuple(dict.fromkeys([*chosen.notes, *found.notes]))
        return replace(chosen, consumers=found.consumers, biases=found.biases, notes=notes)

    def order(self, weight: Tensor, evidence: Evidence, seed: int) -> Tensor:
        """Return the order in which the other pruner removes structures.

        Raises:
            ConfigError: Its sets are not nested.
        """
        mask = self.mask
        if isinstance(mask, StructuredPruner):
            return mask.order(weight, evidence, seed)
        every = range(get_structure_layout(evidence).count + 1)
        removed = self._chosen(weight, evidence, every, seed).removed
        if not is_nested(removed):
            raise ConfigError(f"the sets of {mask} are not nested: they have no one order")
        return find_order(removed)

    def _chosen(
        self, weight: Tensor, evidence: Evidence, counts: Sequence[int], seed: int
    ) -> StructuredVariants:
        found = self.mask.prune(weight, evidence, counts, seed=seed)
        if not isinstance(found, StructuredVariants):
            raise ConfigError(f"mask must remove structures: {self.mask} did not")
        return found
