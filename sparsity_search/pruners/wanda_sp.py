"""Wanda's score for whole structures, without any compensation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sparsity_search.evidence.evidence import Evidence
from sparsity_search.evidence.statistics import Statistic
from sparsity_search.pruners.bases.structured import (
    StructuredPruner,
    get_structure_layout,
    sort_by_score,
    sum_columns,
)


@dataclass(frozen=True, kw_only=True)
class WandaSPPruner(StructuredPruner):
    """Score ``Σ_j mean_i |W_ij| · rms(x_j)`` over a structure's inputs of its consumer.

    The baseline Wanda-sp of FLAP (An et al., AAAI 2024, arXiv 2312.11983, section 4).
    """

    @property
    def requires(self) -> Statistic:
        """The inputs' norms."""
        return Statistic.NORM

    def order(self, weight: Tensor, evidence: Evidence, seed: int) -> Tensor:
        """Return structures by rising score."""
        shape = get_structure_layout(evidence)
        columns = shape.consumer(weight).abs().mean(dim=0)
        norms = evidence.inputs.norms().to(weight.device)
        return sort_by_score(sum_columns(columns * norms, shape), seed)
