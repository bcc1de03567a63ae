"""Single weights of every linear layer, and of every expert in mixtures of experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from sparsity_search.models.anatomy.experts import (
    ExpertLinear,
    ExpertMatrix,
    ExpertMixture,
    UnknownView,
    find_mixtures,
    find_unknown_experts,
)
from sparsity_search.models.anatomy.fused import READERS, find_rows_by_role
from sparsity_search.models.anatomy.linears import is_linear
from sparsity_search.models.anatomy.unit_kind import DecoderBlock, FoundUnit, UnitKind
from sparsity_search.models.anatomy.views import LinearView, RowsView


@dataclass(frozen=True, kw_only=True)
class WeightUnits(UnitKind):
    """One unit for each linear layer and each matrix of an expert; single weights are removed.

    The rows of fused projections are units by role: ``c_attn[q]``, ``c_attn[k]``, ``c_attn[v]``.
    Routers, and gates of shared experts, are not units.
    """

    def find(self, block: DecoderBlock) -> Iterator[FoundUnit]:
        """Yield the linear layers and the experts' matrices."""
        found = list(find_mixtures(block.module))
        gates = {gate for mixture in found for gate in mixture.gates()}
        banks = {mixture.experts: mixture.bank for mixture in found if mixture.bank}
        listed = {
            part: place for mixture in found for part, place in _find_expert_modules(mixture)
        }
        for name, module in block.module.named_modules():
            full = f"{block.name}.{name}"
            if is_linear(module) and module not in gates:
                if own := listed.get(module):
                    yield FoundUnit(full, block.roles[full], ExpertLinear(module, *own))
                else:
                    yield from _find_linear_units(block, full)
            if bank := banks.get(module):
                for index in range(bank.count):
                    for matrix, role in bank.roles.items():
                        view = ExpertMatrix(bank, index, matrix)
                        yield FoundUnit(f"{full}.{index}.{matrix}", role, view)
        for name, parameter in find_unknown_experts(block.module, found):
            full = f"{block.name}.{name}"
            yield FoundUnit(full, "unknown", UnknownView(full, parameter))


def _find_linear_units(block: DecoderBlock, name: str) -> Iterator[FoundUnit]:
    """Yield a linear layer, or its rows by role if it is a fused projection."""
    linear, role, parent = block.linears[name], block.roles[name], name.rpartition(".")[0]
    readers = [
        block.linears[other]
        for other, its in block.roles.items()
        if its == READERS.get(role) and other.rpartition(".")[0] == parent
    ]
    rows = find_rows_by_role(block.model, linear, readers[0], role) if readers else {}
    if not rows:
        yield FoundUnit(name, role, LinearView(linear))
    for part, own in rows.items():
        yield FoundUnit(f"{name}[{part}]", part, RowsView(linear, own))


def _find_expert_modules(
    mixture: ExpertMixture,
) -> Iterator[tuple[nn.Module, tuple[ExpertMixture, int]]]:
    """Yield the parts of experts that are modules, each with its mixture and number."""
    for index, expert in enumerate(() if mixture.bank else mixture.experts.children()):
        for part in expert.modules():
            yield part, (mixture, index)
