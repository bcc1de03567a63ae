"""DaSS: in a gated feed-forward, what a neuron's output is worth decides on its weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from sparsity_search.errors import ConfigError
from sparsity_search.evidence.evidence import Evidence
from sparsity_search.evidence.statistics import Statistic
from sparsity_search.evidence.variants import RankedVariants
from sparsity_search.interfaces.pruner import check_counts
from sparsity_search.profiles.patterns import Pattern
from sparsity_search.pruners.bases.score import ScorePruner, rank_weights


@dataclass(frozen=True, kw_only=True)
class DassPruner(ScorePruner):
    """Score gate and up by ``|W_ij| · ‖z_i‖₂^a``, else Wanda (Guo et al. 2024, arXiv 2405.01943).

    ``z`` is the input of the linear that reads the unit's outputs (``down``), one value for each
    output row. As the factor is the same all along a row, weights of gate and up compete within
    an input **column**: the patterns apply to the transposed weight. So ``row`` means that each
    input loses as many, ``block`` is 128 outputs, and N:M groups are M consecutive **outputs** of
    one input: the stored matrix is N:M along its other dimension than usual. All units that no
    such linear follows, ``down`` among them, get Wanda's score and patterns along inputs.

    Attributes:
        exponent: ``a``; 0 is magnitude, for gate and up.
    """

    pattern: str = "row"
    exponent: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.exponent < math.inf:
            raise ConfigError(f"exponent must be at least 0, not {self.exponent}")

    @property
    def groups_inputs(self) -> bool:
        """No: those of gate and up are outputs."""
        return False

    @property
    def needs_following(self) -> bool:
        """Yes: their norms weigh the rows."""
        return True

    @property
    def requires(self) -> Statistic:
        """The norms of the inputs, and of those of the linear that follows."""
        return Statistic.NORM

    def score(self, weight: Tensor, evidence: Evidence) -> Tensor:
        """Return ``|W|`` with rows weighed by what follows; if nothing does, Wanda's score."""
        if evidence.following is None:
            return weight.abs() * evidence.inputs.norms().to(weight.device)
        worth = evidence.following.norms().to(weight.device).pow(self.exponent)
        return weight.abs() * worth[:, None]

    def prune(
        self, weight: Tensor, evidence: Evidence, counts: Sequence[int], *, seed: int
    ) -> RankedVariants:
        """Return nested masks, see `Pruner.prune`."""
        if evidence.following is None:
            return super().prune(weight, evidence, counts, seed=seed)
        table = check_counts(counts, weight)
        score = self.finite_score(weight, evidence)
        found = rank_weights(weight.T, score.T, Pattern.parse(self.pattern), table, seed)
        return replace(found, codes=found.codes.T.contiguous())
