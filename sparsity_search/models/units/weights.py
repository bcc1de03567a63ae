"""Single weights of every linear layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from sparsity_search.models.roles import role_of
from sparsity_search.models.units.base import Block, FoundUnit, UnitKind
from sparsity_search.models.views import LinearView


@dataclass(frozen=True, kw_only=True)
class Weights(UnitKind):
    """One unit for each linear layer; single weights are removed."""

    def find(self, block: Block) -> Iterator[FoundUnit]:
        """Yield the linear layers."""
        for name, module in block.module.named_modules():
            if isinstance(module, nn.Linear):
                full = f"{block.name}.{name}"
                yield FoundUnit(full, role_of(full), LinearView(module))
