"""Wanda: weights times the size of what they multiply."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sparsity_search.evidence.evidence import Evidence
from sparsity_search.evidence.statistics import Statistic
from sparsity_search.pruners.bases.score import ScorePruner


@dataclass(frozen=True, kw_only=True)
class WandaPruner(ScorePruner):
    """Score ``|W_ij| · ‖X_j‖₂``, compared within a row (Sun et al. 2024, arXiv 2306.11695, eq. 1).

    The square of the score is SparseGPT's saliency with the Hessian replaced by its diagonal. The
    norm is taken as a root mean square: a factor common to a layer changes no order.
    """

    pattern: str = "row"

    @property
    def requires(self) -> Statistic:
        """The inputs' norms."""
        return Statistic.NORM

    def score(self, weight: Tensor, evidence: Evidence) -> Tensor:
        """Return ``|W|`` with each column times the norm of its input."""
        return weight.abs() * evidence.inputs.norms().to(weight.device)
