"""REAP: drop the experts of a mixture that add least to the tokens that they get."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sparsity_search.evidence.evidence import Evidence, get_routing
from sparsity_search.pruners.bases.structured import StructuredPruner, sort_by_score


@dataclass(frozen=True, kw_only=True)
class REAPPruner(StructuredPruner):
    """Drops experts by the mean of gate weight times output norm over the tokens they get.

    REAP, router-weighted expert activation pruning (Lasby et al., arXiv 2510.13999).
    Experts that get no token score 0 and go first. What is dropped leaves the router too, so that
    it chooses among the others; their gate weights are normalised as the model does it. Where
    gate weights multiply what an expert reads (Llama 4), the score is the mean output norm.
    """

    units: ClassVar[tuple[str, ...]] = ("experts",)

    def order(self, weight: Tensor, evidence: Evidence, seed: int) -> Tensor:
        """Return experts by rising score.

        Raises:
            ConfigError: The unit is no mixture of experts.
            NumericalError: A score is not finite.
        """
        return sort_by_score(get_routing(evidence).saliency.to(weight.device), seed)
