"""Reconstruction of the blocks' outputs, one block after the other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from sparsity_search.errors import ConfigError
from sparsity_search.interfaces.recovery import (
    Recovered,
    Recovery,
    RecoveryProblem,
    check_positive,
)
from sparsity_search.recoveries.bases.blockwise import BlockReconstruction, BlockTraining
from sparsity_search.recoveries.bases.choosing import choose
from sparsity_search.recoveries.bases.forms import Kept, MakeForm, MaskedLowRank
from sparsity_search.recoveries.bases.trainable import measure_size
from sparsity_search.utils.random import derive_seed

#: Factor of a low-rank change for each unit of its rank, as alpha = 2 r in PERP.
_ALPHA = 2.0


@dataclass(frozen=True, kw_only=True)
class BlockRecovery(Recovery):
    """Trains each block's kept weights, norms and biases on the error of its output.

    Only one block's gradients and optimiser are in memory, so it works on models of any size.
    Training of each block stops early on held-out text, and a block that does not gain keeps its
    weights. Zimmer et al. 2024, PERP (arXiv 2312.15230, section 3.3) reconstruct single layers in
    this way, Yang et al. 2025, Wanda++ (arXiv 2503.04992) blocks.

    Args:
        sequences: Sequences of text to train on.
        held_out: Sequences that decide when to stop.
        steps: Steps of Adam for each block, at most.
        rate: Its greatest step, relative to the size of a weight's entries.
        batch: Sequences of a step.
        inputs: ``dense``: the target is what the dense block makes of the dense model's stream,
            so that a block makes up for those before it. ``pruned``: what it makes of the pruned
            model's.
        rank: Rank of a change of the kept weights (MaskLoRA); 0 trains all of them.
    """

    loss: ClassVar[str] = "relative error of the last block"
    offloads: ClassVar[bool] = True

    steps: int = 400
    rate: float = 0.02
    batch: int = 1
    inputs: Literal["dense", "pruned"] = "dense"
    rank: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(steps=self.steps, rate=self.rate, batch=self.batch)
        if self.rank < 0:
            raise ConfigError(f"rank must not be negative, but is {self.rank}")

    def train(self, problem: RecoveryProblem) -> Recovered:
        """Train one block after the other."""
        how = BlockTraining(
            steps=self.steps,
            rate=self.rate,
            batch=self.batch,
            dense_inputs=self.inputs == "dense",
            make_form=lambda block: self._make_form(derive_seed(problem.seed, "form", block)),
            choose=partial(choose, problem.subject),
        )
        return BlockReconstruction(problem, how).run()

    def count_parts(self, problem: RecoveryProblem) -> int:
        """Return the number of blocks."""
        return len(problem.subject.blocks)

    def _make_form(self, seed: int) -> MakeForm:
        if not self.rank:
            return lambda _, kept: Kept(kept)
        generator = torch.Generator().manual_seed(seed)
        return partial(_build_low_rank, self.rank, generator)


def _build_low_rank(
    rank: int, generator: torch.Generator, parameter: nn.Parameter, kept: Tensor
) -> nn.Module:
    return MaskedLowRank(kept, rank, _ALPHA * measure_size(parameter), generator)
