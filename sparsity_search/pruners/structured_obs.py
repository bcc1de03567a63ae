"""Optimal brain surgeon on whole structures: one greedy pass gives every count."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsity_search.errors import ConfigError
from sparsity_search.evidence.evidence import Evidence
from sparsity_search.pruners.bases.columns import (
    ColumnPruner,
    EliminationResult,
    EliminationSettings,
    eliminate,
)
from sparsity_search.pruners.bases.structured import get_structure_layout


@dataclass(frozen=True, kw_only=True)
class StructuredOBSPruner(ColumnPruner):
    """Remove the structure whose loss the others make up for best, again and again.

    A structure's score is ``tr(W_g ([H⁻¹]_gg)⁻¹ W_gᵀ)`` over its columns ``g`` of the consumer,
    with ``W`` and ``H⁻¹`` as the removals before it have left them: ZipLM (Kurtic et al. 2023,
    arXiv 2302.04089, section 3), DarwinLM (Tang et al. 2025, arXiv 2502.07780). One pass over
    one inverse ranks all structures. The consumer is then fitted exactly to what each count
    keeps, as Týr-the-Pruner does after its rounds (Li et al. 2025, arXiv 2503.09657).

    Attributes:
        per_step: Structures that are removed together, by the same scores; more is faster.
        linear_term: Score ``w·(([H⁻¹]_gg)⁻¹ w / 2 + H w₀)`` instead, summed over outputs: Týr's
            first-order term adds the correlation with the dense output, ``w₀`` being dense.
    """

    per_step: int = 1
    linear_term: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_step < 1:
            raise ConfigError(f"per_step must be at least 1, not {self.per_step}")

    def order(self, weight: Tensor, evidence: Evidence, seed: int) -> Tensor:
        """Return structures in the order of their elimination."""
        return self._eliminate(weight, evidence, seed).order

    @torch.no_grad()
    def error_curve(self, weight: Tensor, evidence: Evidence, *, seed: int = 0) -> Tensor:
        """Return the layer error for every count, see `ColumnPruner.error_curve`.

        Structures that go one by one bring their errors with them: no other factor is needed.
        """
        if self.per_step > 1 or not weight.isfinite().all():
            return super().error_curve(weight, evidence, seed=seed)
        costs = self._eliminate(weight.float(), evidence, seed).costs.clamp_min(0)
        return torch.cat([costs.new_zeros(1), costs.cumsum(dim=0)])

    def _eliminate(self, weight: Tensor, evidence: Evidence, seed: int) -> EliminationResult:
        shape = get_structure_layout(evidence)
        consumer = self._live(shape.consumer(weight), evidence)
        how = EliminationSettings(per_step=self.per_step, linear_term=self.linear_term, seed=seed)
        return eliminate(consumer, self._hessian(consumer, evidence), shape.count, how)
