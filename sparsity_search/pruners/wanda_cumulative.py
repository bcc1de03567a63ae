"""Wanda's variant with rows of unequal sparsity: each loses the same share of its score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsity_search.errors import ConfigError
from sparsity_search.evidence.evidence import Evidence
from sparsity_search.evidence.statistics import Statistic
from sparsity_search.evidence.variants import RankedVariants, encode_order
from sparsity_search.interfaces.pruner import check_counts
from sparsity_search.profiles.patterns import Pattern
from sparsity_search.pruners.bases.order import build_sort_keys, draw_tie_breaks
from sparsity_search.pruners.bases.score import ScorePruner


@dataclass(frozen=True, kw_only=True)
class WandaCumulativePruner(ScorePruner):
    """Remove the same share of each row's Wanda score (Sun et al. 2024, arXiv 2306.11695).

    This is ``use_variant`` of the released code: a row loses its least scores
    ``S_ij = |W_ij| · ‖X_j‖₂`` for as long as their sum is at most ``α`` times the row's sum, with
    one ``α`` for the layer. There ``α`` is found by bisection for each sparsity. Here all weights
    are ordered once by the ``α`` at which they go, the row's cumulative share of score up to and
    including them: counts are exact, and masks nest. Where shares are equal (the last weight of
    each row goes at ``α = 1``) the least score goes first.

    Attributes:
        pattern: ``row``, as above, or N:M groups. These have the same number in every row, so
            that no share can differ: with them this is plain Wanda.
    """

    pattern: str = "row"

    def __post_init__(self) -> None:
        if Pattern.parse(self.pattern).scope not in ("row", "group"):
            raise ConfigError(
                f"wanda_cumulative's pattern must be row or N:M, not {self.pattern!r}"
            )

    @property
    def requires(self) -> Statistic:
        """The inputs' norms."""
        return Statistic.NORM

    def score(self, weight: Tensor, evidence: Evidence) -> Tensor:
        """Return Wanda's score, ``|W|`` with each column times the norm of its input."""
        return weight.abs() * evidence.inputs.norms().to(weight.device)

    def prune(
        self, weight: Tensor, evidence: Evidence, counts: Sequence[int], *, seed: int
    ) -> RankedVariants:
        """Return nested masks, see `Pruner.prune`."""
        if Pattern.parse(self.pattern).is_grouped:
            return super().prune(weight, evidence, counts, seed=seed)
        table = check_counts(counts, weight)
        score = self.finite_score(weight, evidence)
        order = _compute_cumulative_order(score, weight == 0, seed)
        return RankedVariants(counts=table, codes=encode_order(order, table).view(weight.shape))


def _compute_cumulative_order(score: Tensor, zero: Tensor, seed: int) -> Tensor:
    """Return flat indices by cumulative share of the row's score, zeros first.

    Args:
        score: ``(rows, columns)``, finite, not negative, float32; 0 where ``zero``.
        zero: bool, of the same shape.
        seed: Decides between equal scores.
    """
    keys = build_sort_keys(score, zero, draw_tie_breaks(score.shape, seed, score.device))
    ranks = keys.argsort(dim=1)
    # In float32 large layers have many shares that round to the same number.
    sums = score.gather(1, ranks).double().cumsum(dim=1)
    total = sums[:, -1:]
    shares = torch.empty_like(sums).scatter_(1, ranks, sums / total.masked_fill(total == 0, 1))
    order = keys.flatten().argsort()
    return order[shares.flatten()[order].argsort(stable=True)]
