"""Single weights of every linear layer, and of every expert in mixtures of experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from sparsity_search.models.experts import DOWN, GATE_UP, ExpertMatrix, mixtures
from sparsity_search.models.roles import role_of
from sparsity_search.models.units.base import Block, FoundUnit, UnitKind
from sparsity_search.models.views import LinearView

#: Parameters of experts → roles, in forward order.
_EXPERT_ROLES = {GATE_UP: "expert_gate_up", DOWN: "expert_down"}


@dataclass(frozen=True, kw_only=True)
class Weights(UnitKind):
    """One unit for each linear layer and each matrix of an expert; single weights are removed.

    Routers, and gates of shared experts, are left alone.
    """

    def find(self, block: Block) -> Iterator[FoundUnit]:
        """Yield the linear layers and the experts' matrices."""
        found = list(mixtures(block.module))
        gates = {gate for mixture in found for gate in mixture.gates()}
        experts = {mixture.experts: mixture.count for mixture in found}
        for name, module in block.module.named_modules():
            full = f"{block.name}.{name}"
            if isinstance(module, nn.Linear) and module not in gates:
                yield FoundUnit(full, role_of(full), LinearView(module))
            for index in range(experts.get(module, 0)):
                for matrix, role in _EXPERT_ROLES.items():
                    view = ExpertMatrix(module, index, matrix)
                    yield FoundUnit(f"{full}.{index}.{matrix}", role, view)
