"""Feed-forward channels and query heads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsity_search.models.anatomy.sublayers import (
    Sublayer,
    build_channel_parts,
    build_key_value_parts,
    count_key_value_heads,
    find_divisible_sublayers,
)
from sparsity_search.models.anatomy.unit_kind import DecoderBlock, FoundUnit, UnitKind
from sparsity_search.models.anatomy.views import LayerPart, StructuredView


@dataclass(frozen=True, kw_only=True)
class HeadUnits(UnitKind):
    """Feed-forward channels, and query heads, equally many of every key-value group.

    A structure of the attention is the query heads at the same place of every group, so that all
    groups stay equal. Keys and values stay. If every query head has its own keys, the structure
    is the whole head.
    """

    def find(self, block: DecoderBlock) -> Iterator[FoundUnit]:
        """Yield the attention, whose structures are query heads, and the feed-forward."""
        for part in find_divisible_sublayers(block):
            attention = part.role == "attention"
            parts = (
                _build_query_head_parts(part, block) if attention else build_channel_parts(part)
            )
            # shared keys stay, and depend on how many queries read each
            alone = len(parts) == len(part.linears)
            yield FoundUnit(part.name, part.role, StructuredView(parts, alone=alone))


def _build_query_head_parts(attention: Sublayer, block: DecoderBlock) -> list[LayerPart]:
    groups = count_key_value_heads(block.config)
    each = block.config.num_attention_heads // groups
    if each == 1:
        return build_key_value_parts(attention, block.config)

    def places(role: str) -> Tensor:
        rows = torch.arange(attention.sizes[role]).view(groups, each, -1)
        return rows.transpose(0, 1).flatten(1)

    return attention.parts({role: places(role) for role in ("o", "q")})
