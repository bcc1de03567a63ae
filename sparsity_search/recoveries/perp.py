"""Training of biases, norms and a masked low-rank change of the whole model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsity_search.interfaces.recovery import (
    Recovered,
    Recovery,
    RecoveryProblem,
    check_positive,
)
from sparsity_search.recoveries.bases.forms import MaskedLowRank
from sparsity_search.recoveries.bases.trainable import measure_size
from sparsity_search.recoveries.bases.whole import Loss, ModelTraining, WholeTraining
from sparsity_search.utils.random import derive_seed


@dataclass(frozen=True, kw_only=True)
class PerpRecovery(Recovery):
    """Trains biases, norms and MaskLoRA of the whole model on its predictions.

    Zimmer et al. 2024, PERP (arXiv 2312.15230): ``W + (alpha / r) (B A) * mask``, which is merged
    without loss of zeros. The optimiser holds about a hundredth of the weights.

    Args:
        sequences: Sequences of text to train on.
        held_out: Sequences that decide which values are kept.
        steps: Steps of AdamW, at most.
        rate: Its greatest step.
        batch: Sequences of a step.
        target: ``next_token``: the likelihood of the text; ``kl``: the divergence from the dense
            model's predictions.
        rank: Rank of the change of each weight.
        alpha: Its factor is ``alpha / rank`` times the size of the weight's entries.
    """

    loss: ClassVar[str] = "loss of predictions, nats a token"

    steps: int = 1000
    rate: float = 0.01
    batch: int = 2
    target: Loss = "kl"
    rank: int = 16
    alpha: float = 32.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(steps=self.steps, rate=self.rate, batch=self.batch, rank=self.rank)

    def train(self, problem: RecoveryProblem) -> Recovered:
        """Train the whole model."""
        generator = torch.Generator().manual_seed(derive_seed(problem.seed, "form"))

        def make_form(parameter: nn.Parameter, kept: Tensor) -> nn.Module:
            scale = self.alpha / self.rank * measure_size(parameter)
            return MaskedLowRank(kept, self.rank, scale, generator)

        how = WholeTraining(self.steps, self.rate, self.batch, self.target, make_form)
        return ModelTraining(problem, how).run()

    def count_parts(self, problem: RecoveryProblem) -> int:
        """Return the number of steps."""
        del problem
        return self.steps
