"""Pruners that score each weight once, and keep the others as they are."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sparsity_search.errors import NumericalError
from sparsity_search.evidence.evidence import Evidence
from sparsity_search.evidence.variants import GroupedVariants, RankedVariants, encode_order
from sparsity_search.interfaces.pruner import Pruner, check_counts
from sparsity_search.profiles.patterns import Pattern
from sparsity_search.pruners.bases.order import compute_removal_order


@dataclass(frozen=True, kw_only=True)
class ScorePruner(Pruner):
    """Ranks the weights once by a score; all counts are prefixes of that order, masks nest.

    Attributes:
        pattern: Which weights compete: those of a ``layer``, a ``row`` (output), a ``block`` of
            128 columns, or N:M groups: ``2:4`` keeps 2 of 4 consecutive inputs (or all of the
            unit), ``*:4`` as many as the count says.
    """

    pattern: str = "layer"

    def __post_init__(self) -> None:
        Pattern.parse(self.pattern)

    @abstractmethod
    def score(self, weight: Tensor, evidence: Evidence) -> Tensor:
        """Return how much each weight matters: not negative, float32, of the weight's shape.

        Args:
            weight: ``(rows, columns)`` in float32.
            evidence: What is known of the weight.
        """

    def finite_score(self, weight: Tensor, evidence: Evidence) -> Tensor:
        """Return `score` of a weight in any dtype.

        Raises:
            NumericalError: It is not finite.
        """
        score = self.score(weight.float(), evidence)
        if not score.isfinite().all():
            raise NumericalError("scores are not finite: the weight has NaN, Inf or huge entries")
        return score

    def prune(
        self, weight: Tensor, evidence: Evidence, counts: Sequence[int], *, seed: int
    ) -> RankedVariants:
        """Return nested masks, see `Pruner.prune`."""
        table = check_counts(counts, weight)
        score = self.finite_score(weight, evidence)
        return rank_weights(weight, score, Pattern.parse(self.pattern), table, seed)


def rank_weights(
    weight: Tensor, score: Tensor, pattern: Pattern, counts: tuple[int, ...], seed: int
) -> RankedVariants:
    """Return the nested masks of a score.

    Args:
        weight: ``(rows, columns)``.
        score: Finite, not negative, float32, of the weight's shape.
        pattern: Which weights compete.
        counts: Numbers of zeros, legal and increasing.
        seed: Decides between equal scores.

    Raises:
        ConfigError: A count is not possible in the pattern.
    """
    existing = int((weight == 0).sum())
    pattern.check(weight.shape, [count for count in counts if count > existing])
    order = compute_removal_order(score, weight == 0, pattern, seed)
    if not pattern.is_grouped:
        return RankedVariants(counts=counts, codes=encode_order(order, counts).view(weight.shape))
    prefixes = [count if count > existing else 0 for count in counts]
    return GroupedVariants(counts=counts, codes=encode_order(order, prefixes).view(weight.shape))
