"""Whole experts of mixtures of experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sparsity_search.models.anatomy.experts import ExpertsView, find_mixtures
from sparsity_search.models.anatomy.unit_kind import DecoderBlock, FoundUnit, UnitKind


@dataclass(frozen=True, kw_only=True)
class ExpertUnits(UnitKind):
    """Whole experts with their rows of the router; one unit for each mixture of experts.

    Blocks without a mixture have no unit.
    """

    def find(self, block: DecoderBlock) -> Iterator[FoundUnit]:
        """Yield the block's mixtures, whose structures are experts."""
        for mixture in find_mixtures(block.module):
            name = f"{block.name}.{mixture.name}".rstrip(".")  # it may be the block itself
            yield FoundUnit(name, "experts", ExpertsView(mixture))
