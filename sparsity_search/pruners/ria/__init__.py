"""RIA: weights relative to their row and column, and the order of inputs that suits N:M."""

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
from sparsity_search.pruners.ria.permutation import METHODS, find_channel_order


@dataclass(frozen=True, kw_only=True)
class RiaPruner(ScorePruner):
    """Score ``(|W| / column sum + |W| / row sum) · ‖X_j‖₂^a`` (Zhang et al., ICLR 2024).

    Relative importance and activations, from "Plug-and-Play: An Efficient Post-training Pruning
    Method for Large Language Models" (openreview.net/forum?id=Tr0lPx9woF). Both sums are of
    ``|W|`` before pruning, and 0/0 counts as 0. The norm is taken as a root mean square: a factor
    common to a layer changes no order.

    With a permutation the groups of an N:M pattern are those of a better order of the inputs,
    `input_order`. The mask is mapped back to the model's order, so that quality is that of the
    permuted matrix, but **the stored matrix is N:M only after its columns are permuted**. For the
    inputs of ``down`` that is free: permute the rows of ``up`` and ``gate``. Elsewhere the inputs
    have to be gathered at run time.

    Attributes:
        exponent: ``a``; 0 leaves the activations out (the paper's "RI").
        permutation: ``none``; ``heuristic``: strong and weak inputs meet in each group;
            ``assignment``: that, improved by linear sum assignment, one position of the groups
            after another. In ``*:M`` patterns it is chosen for half of each group, once for all
            counts, so that masks nest.
    """

    exponent: float = 0.5
    permutation: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.exponent < math.inf:
            raise ConfigError(f"exponent must be at least 0, not {self.exponent}")
        if self.permutation not in ("none", *METHODS):
            known = ", ".join(METHODS)
            raise ConfigError(f"permutation must be none, {known}, not {self.permutation!r}")
        if self.permutation != "none" and not Pattern.parse(self.pattern).is_grouped:
            raise ConfigError(f"permutation needs an N:M pattern, not {self.pattern!r}")

    @property
    def groups_inputs(self) -> bool:
        """Only without a permutation."""
        return self.permutation == "none"

    @property
    def requires(self) -> Statistic:
        """The inputs' norms."""
        return Statistic.NORM

    def score(self, weight: Tensor, evidence: Evidence) -> Tensor:
        """Return the relative importance, each column times its norm to the exponent."""
        importance = _compute_shares(weight.abs(), dim=0) + _compute_shares(weight.abs(), dim=1)
        return importance * evidence.inputs.norms().to(weight.device).pow(self.exponent)

    def input_order(self, weight: Tensor, evidence: Evidence) -> Tensor:
        """Return the permutation of the columns after which the masks are N:M, ``(columns,)``.

        Raises:
            ConfigError: There is no permutation, or the columns are not whole groups.
            NumericalError: The weight or the statistics are not finite.
        """
        if self.permutation == "none":
            raise ConfigError("permutation is none: the inputs keep their order")
        return self._arranged(weight, evidence)[1]

    def prune(
        self, weight: Tensor, evidence: Evidence, counts: Sequence[int], *, seed: int
    ) -> RankedVariants:
        """Return nested masks, see `Pruner.prune`."""
        if self.permutation == "none":
            return super().prune(weight, evidence, counts, seed=seed)
        table = check_counts(counts, weight)
        score, order = self._arranged(weight, evidence)
        pattern = Pattern.parse(self.pattern)
        found = rank_weights(weight[:, order], score[:, order], pattern, table, seed)
        return replace(found, codes=found.codes[:, order.argsort()])

    def _arranged(self, weight: Tensor, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """Return the score, in the given order of columns, and a better order."""
        pattern = Pattern.parse(self.pattern)
        pattern.check(weight.shape, [])
        score = self.finite_score(weight, evidence)
        keep = pattern.group // 2 if pattern.keep is None else pattern.keep
        return score, find_channel_order(score, keep, pattern.group, self.permutation)


def _compute_shares(magnitude: Tensor, dim: int) -> Tensor:
    """Return entries divided by their sums along ``dim``, 0 where the sum is."""
    total = magnitude.sum(dim=dim, keepdim=True)
    return magnitude / total.masked_fill(total == 0, 1)
