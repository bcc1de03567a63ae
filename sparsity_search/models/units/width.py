"""Feed-forward channels and key-value groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sparsity_search.models.anatomy.sublayers import channels, divisible, key_value_groups
from sparsity_search.models.anatomy.unit_kind import Block, FoundUnit, UnitKind
from sparsity_search.models.anatomy.views import StructuredView


@dataclass(frozen=True, kw_only=True)
class WidthUnits(UnitKind):
    """Feed-forward channels, and key-value heads with the query heads that read them."""

    def find(self, block: Block) -> Iterator[FoundUnit]:
        """Yield the attention, whose structures are KV groups, and the feed-forward."""
        for part in divisible(block):
            attention = part.role == "attention"
            parts = key_value_groups(part, block.config) if attention else channels(part)
            yield FoundUnit(part.name, part.role, StructuredView(parts))
