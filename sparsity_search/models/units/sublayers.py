"""Whole sublayers: the attention or the feed-forward of a block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sparsity_search.models.anatomy.sublayers import find_sublayers
from sparsity_search.models.anatomy.unit_kind import DecoderBlock, FoundUnit, UnitKind
from sparsity_search.models.anatomy.views import StructuredView


@dataclass(frozen=True, kw_only=True)
class SublayerUnits(UnitKind):
    """Whole attentions and feed-forwards."""

    def find(self, block: DecoderBlock) -> Iterator[FoundUnit]:
        """Yield the sublayers, one structure each."""
        for part in find_sublayers(block):
            yield FoundUnit(part.name, part.role, StructuredView(part.whole()))
