"""Whole experts of mixtures of experts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import nn

from sparsity_search.models.anatomy.expert_count import check_fewer_experts
from sparsity_search.models.anatomy.experts import find_mixtures
from sparsity_search.models.anatomy.unit_kind import DecoderBlock, FoundUnit, UnitKind
from sparsity_search.models.anatomy.views import WeightView
from sparsity_search.models.anatomy.whole_experts import ExpertsView


@dataclass(frozen=True, kw_only=True)
class ExpertUnits(UnitKind):
    """Whole experts with their rows of the router; one unit for each mixture of experts.

    Blocks without a mixture have no unit.
    """

    def find(self, block: DecoderBlock) -> Iterator[FoundUnit]:
        """Yield the block's mixtures, whose structures are experts."""
        for mixture in find_mixtures(block.module):
            name = f"{block.name}.{mixture.name}".rstrip(".")  # it may be the block itself
            yield FoundUnit(name, "experts", ExpertsView(replace(mixture, name=name)))

    def check(self, model: nn.Module, views: Sequence[WeightView]) -> None:
        """Check that the architecture has a place for fewer experts, see `check_fewer_experts`."""
        if mixtures := [view for view in views if isinstance(view, ExpertsView)]:
            check_fewer_experts(model, mixtures)
