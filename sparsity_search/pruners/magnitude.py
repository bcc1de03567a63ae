"""Magnitude pruning: the smallest weights go, whatever their inputs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sparsity_search.evidence.evidence import Evidence
from sparsity_search.pruners.bases.score import ScorePruner


@dataclass(frozen=True, kw_only=True)
class MagnitudePruner(ScorePruner):
    """Score ``|W|`` (Han et al. 2015, arXiv 1506.02626, section 3.1). Needs no data."""

    def score(self, weight: Tensor, evidence: Evidence) -> Tensor:  # noqa: ARG002
        """Return ``|W|``."""
        return weight.abs()
