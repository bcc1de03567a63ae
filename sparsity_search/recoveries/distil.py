"""Training of all kept weights on the dense model's predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparsity_search.interfaces.recovery import (
    Recovered,
    Recovery,
    RecoveryProblem,
    check_positive,
)
from sparsity_search.recoveries.bases.forms import Kept
from sparsity_search.recoveries.bases.whole import Loss, ModelTraining, WholeTraining


@dataclass(frozen=True, kw_only=True)
class DistilRecovery(Recovery):
    """Trains all kept weights, biases and norms on the divergence from the dense model.

    Weights, gradients and two moments of AdamW are float32 in memory: 16 bytes a weight, besides
    the dense model. Blocks run again in the backward pass, so activations take little.

    Args:
        sequences: Sequences of text to train on.
        held_out: Sequences that decide which values are kept.
        steps: Steps of AdamW, at most.
        rate: Its greatest step, relative to the size of a weight's entries.
        batch: Sequences of a step.
        target: ``kl``: the divergence from the dense model's predictions; ``next_token``: the
            likelihood of the text.
    """

    loss: ClassVar[str] = "loss of predictions, nats a token"

    steps: int = 1000
    rate: float = 2e-3
    batch: int = 2
    target: Loss = "kl"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(steps=self.steps, rate=self.rate, batch=self.batch)

    def train(self, problem: RecoveryProblem) -> Recovered:
        """Train the whole model."""
        how = WholeTraining(
            self.steps, self.rate, self.batch, self.target, lambda _, kept: Kept(kept), True
        )
        return ModelTraining(problem, how).run()

    def count_parts(self, problem: RecoveryProblem) -> int:
        """Return the number of steps."""
        del problem
        return self.steps
