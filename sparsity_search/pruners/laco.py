"""Layer collapse: what is dropped is first merged into the kept block or sublayer before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparsity_search.evidence.evidence import Evidence
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.surgery.merge import merge_removed
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.pruners.bases.structured import (
    Compensation,
    StructuredPruner,
    get_structure_layout,
)


@dataclass(frozen=True, kw_only=True)
class LaCoPruner(StructuredPruner):
    """Merges removed blocks or sublayers into the kept one before them, then drops them.

    LaCo (Yang et al., arXiv 2402.11187), see `models.surgery.merge.merged`. The profile decides
    which units go.
    """

    units: ClassVar[tuple[str, ...]] = ("blocks", "sublayers")
    experimental: ClassVar[str] = (
        "perplexity 44,539 after merging 3 of 30 blocks, where dropping them has 24.4 "
        "(SmolLM2-135M)"
    )
    merges: ClassVar[bool] = True

    def merge(self, subject: PrunableModel, profile: SparsityProfile) -> None:
        """Merge each run of removed units into the kept unit before it."""
        merge_removed(subject, profile)

    def order(self, weight: Tensor, evidence: Evidence, seed: int) -> Tensor:  # noqa: ARG002
        """Return the one structure."""
        return torch.arange(get_structure_layout(evidence).count, device=weight.device)

    def compensate(self, weight: Tensor, evidence: Evidence, removed: Tensor) -> Compensation:
        """Remove the output's bias with the rest: nothing is left of the unit."""
        bias = get_structure_layout(evidence).bias(weight)
        return Compensation(biases=torch.zeros(len(removed), *bias.shape, device=weight.device))
