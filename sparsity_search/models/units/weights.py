"""Single weights of every linear layer, and of every expert in mixtures of experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from sparsity_search.models.anatomy.experts import (
    ExpertLinear,
    ExpertMatrix,
    Mixture,
    UnknownView,
    mixtures,
    unknown,
)
from sparsity_search.models.anatomy.fused import READERS, rows_by_role
from sparsity_search.models.anatomy.linears import is_linear
from sparsity_search.models.anatomy.unit_kind import Block, FoundUnit, UnitKind
from sparsity_search.models.anatomy.views import LinearView, RowsView


@dataclass(frozen=True, kw_only=True)
class WeightUnits(UnitKind):
    """One unit for each linear layer and each matrix of an expert; single weights are removed.

    The rows of fused projections are units by role: ``c_attn[q]``, ``c_attn[k]``, ``c_attn[v]``.
    Routers, and gates of shared experts, are not units.
    """

    def find(self, block: Block) -> Iterator[FoundUnit]:
        """Yield the linear layers and the experts' matrices."""
        found = list(mixtures(block.module))
        gates = {gate for mixture in found for gate in mixture.gates()}
        banks = {mixture.experts: mixture.bank for mixture in found if mixture.bank}
        listed = {part: place for mixture in found for part, place in _places(mixture)}
        for name, module in block.module.named_modules():
            full = f"{block.name}.{name}"
            if is_linear(module) and module not in gates:
                if own := listed.get(module):
                    yield FoundUnit(full, block.roles[full], ExpertLinear(module, *own))
                else:
                    yield from _linear_units(block, full)
            if bank := banks.get(module):
                for index in range(bank.count):
                    for matrix, role in bank.roles.items():
                        view = ExpertMatrix(bank, index, matrix)
                        yield FoundUnit(f"{full}.{index}.{matrix}", role, view)
        for name, parameter in unknown(block.module, found):
            full = f"{block.name}.{name}"
            yield FoundUnit(full, "unknown", UnknownView(full, parameter))


def _linear_units(block: Block, name: str) -> Iterator[FoundUnit]:
    """Yield a linear layer, or its rows by role if it is a fused projection."""
    linear, role, parent = block.linears[name], block.roles[name], name.rpartition(".")[0]
    readers = [
        block.linears[other]
        for other, its in block.roles.items()
        if its == READERS.get(role) and other.rpartition(".")[0] == parent
    ]
    rows = rows_by_role(block.model, linear, readers[0], role) if readers else {}
    if not rows:
        yield FoundUnit(name, role, LinearView(linear))
    for part, own in rows.items():
        yield FoundUnit(f"{name}[{part}]", part, RowsView(linear, own))


def _places(mixture: Mixture) -> Iterator[tuple[nn.Module, tuple[Mixture, int]]]:
    """Yield the parts of experts that are modules, each with its mixture and number."""
    for index, expert in enumerate(() if mixture.bank else mixture.experts.children()):
        for part in expert.modules():
            yield part, (mixture, index)
