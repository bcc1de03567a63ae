"""Measures as a package outside would have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from sparsity_search.interfaces.measure import Measure
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.spaces.prices import PriceCurve


@dataclass(frozen=True, kw_only=True)
class TrafficMeasure(Measure):
    """Bytes read from memory for a token: those of all weights.

    Args:
        width: Bytes of a weight.
    """

    units: ClassVar[tuple[str, ...]] = ("sublayers", "blocks")

    width: int = 2

    def curves(self, subject: PrunableModel) -> Sequence[PriceCurve]:
        return [
            PriceCurve((0, unit.count), (0.0, float(self.width * unit.size)))
            for unit in subject.layout
        ]


@dataclass(frozen=True, kw_only=True)
class PackedMeasure(Measure):
    """Bits of weights that are stored without their zeros: 16 each, and where they are.

    A bit mask says it for single weights; of groups, log2(M) bits for each weight kept.
    """

    units: ClassVar[tuple[str, ...]] = ("weights",)
    prices_patterns: ClassVar[bool] = True

    def curves(self, subject: PrunableModel) -> Sequence[PriceCurve]:
        return [
            PriceCurve((0, n // 16, n), (0.0, 0.0, 16.0 * n - n))
            for n in subject.layout.counts.tolist()
        ]

    def pattern_savings(self, subject: PrunableModel, pattern: str) -> Sequence[float]:
        kept, size = map(int, pattern.split(":"))
        bits = (size - 1).bit_length()
        return [16.0 * n - n * kept / size * (16 + bits) for n in subject.layout.counts.tolist()]
