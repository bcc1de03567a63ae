"""Single weights of every linear layer, and of every expert in mixtures of experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from sparsity_search.models.experts import (
    ExpertLinear,
    ExpertMatrix,
    Mixture,
    UnknownView,
    mixtures,
    unknown,
)
from sparsity_search.models.linears import is_linear, named_linears
from sparsity_search.models.roles import roles_of
from sparsity_search.models.units.base import Block, FoundUnit, UnitKind
from sparsity_search.models.views import LinearView


@dataclass(frozen=True, kw_only=True)
class Weights(UnitKind):
    """One unit for each linear layer and each matrix of an expert; single weights are removed.

    Routers, and gates of shared experts, are left alone.
    """

    def find(self, block: Block) -> Iterator[FoundUnit]:
        """Yield the linear layers and the experts' matrices."""
        found = list(mixtures(block.module))
        gates = {gate for mixture in found for gate in mixture.gates()}
        banks = {mixture.experts: mixture.bank for mixture in found if mixture.bank}
        listed = {part: place for mixture in found for part, place in _places(mixture)}
        roles = roles_of(named_linears(block.module, block.name))
        for name, module in block.module.named_modules():
            full = f"{block.name}.{name}"
            if is_linear(module) and module not in gates:
                own = listed.get(module)
                linear = ExpertLinear(module, *own) if own else LinearView(module)
                yield FoundUnit(full, roles[full], linear)
            if bank := banks.get(module):
                for index in range(bank.count):
                    for matrix, role in bank.roles.items():
                        view = ExpertMatrix(bank, index, matrix)
                        yield FoundUnit(f"{full}.{index}.{matrix}", role, view)
        for name, parameter in unknown(block.module, found):
            full = f"{block.name}.{name}"
            yield FoundUnit(full, "unknown", UnknownView(full, parameter))


def _places(mixture: Mixture) -> Iterator[tuple[nn.Module, tuple[Mixture, int]]]:
    """Yield the parts of experts that are modules, each with its mixture and number."""
    for index, expert in enumerate(() if mixture.bank else mixture.experts.children()):
        for part in expert.modules():
            yield part, (mixture, index)
