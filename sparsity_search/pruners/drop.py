"""Dropping whole sublayers or blocks: which ones is the profile's matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparsity_search.evidence.evidence import Evidence
from sparsity_search.pruners.bases.structured import (
    Compensation,
    StructuredPruner,
    get_structure_layout,
)


@dataclass(frozen=True, kw_only=True)
class DropPruner(StructuredPruner):
    """Removes an attention, feed-forward or block as a whole: its output becomes zero."""

    units: ClassVar[tuple[str, ...]] = ("sublayers", "blocks")

    def order(self, weight: Tensor, evidence: Evidence, seed: int) -> Tensor:  # noqa: ARG002
        """Return the one structure."""
        return torch.arange(get_structure_layout(evidence).count, device=weight.device)

    def compensate(self, weight: Tensor, evidence: Evidence, removed: Tensor) -> Compensation:
        """Remove the output's bias with the rest: nothing is left of the unit."""
        bias = get_structure_layout(evidence).bias(weight)
        return Compensation(biases=torch.zeros(len(removed), *bias.shape, device=weight.device))
