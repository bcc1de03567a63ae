"""FLAP: structures whose inputs hardly fluctuate are replaced by their mean, a bias."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sparsity_search.evidence.evidence import Evidence
from sparsity_search.evidence.fluctuation import check_metric, compute_input_scores
from sparsity_search.evidence.statistics import Statistic
from sparsity_search.pruners.bases.structured import (
    Compensation,
    StructuredPruner,
    get_structure_layout,
    sort_by_score,
    sum_columns,
)


@dataclass(frozen=True, kw_only=True)
class FLAPPruner(StructuredPruner):
    """Score ``Var(x_j) · Σ_i W_ij²``; the mean of what is removed becomes a bias.

    FLAP (An et al., AAAI 2024, arXiv 2312.11983, section 3). A structure's score is the mean over
    its inputs of the consumer, as published for heads. The bias ``W[:, removed] · E[x[removed]]``
    is the best constant: it leaves no mean error. Unlike in the released code, mean and variance
    are the plain ones of all tokens, and an attention's metric is not squared, which the paper
    does not do either. Published statistics are all of the dense model; here they are those that
    the caller gathered.

    Attributes:
        metric: ``WIFV`` as above, ``IFV``: ``Var(x_j)``, or ``WIFN``:
            ``mean_i |W_ij| · rms(x_j)``.
        bias: Whether the bias makes up for what is removed.
    """

    metric: str = "WIFV"
    bias: bool = True

    def __post_init__(self) -> None:
        check_metric(self.metric)

    @property
    def requires(self) -> Statistic:
        """The inputs' means and mean squares."""
        return Statistic.NORM

    def order(self, weight: Tensor, evidence: Evidence, seed: int) -> Tensor:
        """Return structures by rising score."""
        shape = get_structure_layout(evidence)
        scores = compute_input_scores(shape.consumer(weight), evidence.inputs, self.metric)
        return sort_by_score(sum_columns(scores, shape) / shape.inner, seed)

    def compensate(self, weight: Tensor, evidence: Evidence, removed: Tensor) -> Compensation:
        """Return biases that hold the mean of what the removed structures put out."""
        if not self.bias:
            return Compensation()
        shape = get_structure_layout(evidence)
        mean = evidence.inputs.mean().to(weight.device)
        lost = removed.repeat_interleave(shape.inner, dim=1) * mean
        added = lost @ shape.consumer(weight).T
        return Compensation(biases=shape.bias(weight) + added[:, :, None])
