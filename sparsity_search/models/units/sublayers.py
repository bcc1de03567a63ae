"""Whole sublayers: the attention or the feed-forward of a block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sparsity_search.models.units._sublayers import sublayers
from sparsity_search.models.units.base import Block, FoundUnit, UnitKind
from sparsity_search.models.views import StructuredView


@dataclass(frozen=True, kw_only=True)
class Sublayers(UnitKind):
    """Whole attentions and feed-forwards."""

    def find(self, block: Block) -> Iterator[FoundUnit]:
        """Yield the sublayers, one structure each."""
        for part in sublayers(block):
            yield FoundUnit(part.name, part.role, StructuredView(part.whole()))
