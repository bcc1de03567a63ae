"""Magnitude for whole structures: no data at all."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sparsity_search.evidence.evidence import Evidence
from sparsity_search.pruners.bases.structured import (
    StructuredPruner,
    get_structure_layout,
    sort_by_score,
    sum_columns,
)


@dataclass(frozen=True, kw_only=True)
class MagnitudeSPPruner(StructuredPruner):
    """Score ``Σ_j ‖W_:j‖₂`` over a structure's columns of its consumer; reads no text.

    The baseline mag-sp in the repository of FLAP (An et al., AAAI 2024, arXiv 2312.11983).
    """

    def order(self, weight: Tensor, evidence: Evidence, seed: int) -> Tensor:
        """Return structures by rising score."""
        shape = get_structure_layout(evidence)
        return sort_by_score(sum_columns(shape.consumer(weight).norm(dim=0), shape), seed)
