"""Whole decoder blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sparsity_search.errors import ModelError
from sparsity_search.models.anatomy.sublayers import find_other_modules, find_sublayers
from sparsity_search.models.anatomy.unit_kind import DecoderBlock, FoundUnit, UnitKind
from sparsity_search.models.anatomy.views import StructuredView


@dataclass(frozen=True, kw_only=True)
class BlockUnits(UnitKind):
    """Whole decoder blocks."""

    def find(self, block: DecoderBlock) -> Iterator[FoundUnit]:
        """Yield the block, one structure.

        Raises:
            ModelError: It has more than attention and feed-forward.
        """
        parts = [part for sublayer in find_sublayers(block) for part in sublayer.whole()]
        if more := find_other_modules(block):
            raise ModelError(
                f"{block.name} is more than attention and feed-forward: it has {more[0]}"
            )
        parts.sort(key=lambda part: not part.consumer)  # stable: consumers first
        yield FoundUnit(block.name, "block", StructuredView(parts))
