"""Feed-forward channels and key-value groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sparsity_search.models.anatomy.sublayers import (
    build_channel_parts,
    build_key_value_parts,
    find_divisible_sublayers,
)
from sparsity_search.models.anatomy.unit_kind import DecoderBlock, FoundUnit, UnitKind
from sparsity_search.models.anatomy.views import StructuredView


@dataclass(frozen=True, kw_only=True)
class WidthUnits(UnitKind):
    """Feed-forward channels, and key-value heads with the query heads that read them."""

    def find(self, block: DecoderBlock) -> Iterator[FoundUnit]:
        """Yield the attention, whose structures are KV groups, and the feed-forward."""
        for part in find_divisible_sublayers(block):
            attention = part.role == "attention"
            parts = (
                build_key_value_parts(part, block.config)
                if attention
                else build_channel_parts(part)
            )
            yield FoundUnit(part.name, part.role, StructuredView(parts))
