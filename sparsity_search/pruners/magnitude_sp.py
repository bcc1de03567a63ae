"""Magnitude for whole structures: no data at all."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sparsity_search.evidence.evidence import Evidence
from sparsity_search.pruners.bases.structured import (
    StructuredPruner,
    by_score,
    column_sums,
    shape_of,
)


@dataclass(frozen=True, kw_only=True)
class MagnitudeSPPruner(StructuredPruner):
    """Score ``Σ_j ‖W_:j‖₂`` over a structure's columns of its consumer; reads no text.

    The baseline mag-sp in the repository of FLAP (An et al., AAAI 2024, arXiv 2312.11983).
    """

    def order(self, weight: Tensor, evidence: Evidence, seed: int) -> Tensor:
        """Return structures by rising score."""
        shape = shape_of(evidence)
        return by_score(column_sums(shape.consumer(weight).norm(dim=0), shape), seed)
