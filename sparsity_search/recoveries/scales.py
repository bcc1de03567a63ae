"""One factor for each kept channel or head, folded into the weights."""

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
from sparsity_search.models.anatomy.linears import as_matrix
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.anatomy.views import StructuredView
from sparsity_search.recoveries.bases.blockwise import BlockReconstruction, BlockTraining
from sparsity_search.recoveries.bases.choosing import Chosen, choose
from sparsity_search.recoveries.bases.forms import Scaled
from sparsity_search.recoveries.bases.trainable import list_slots


@dataclass(frozen=True, kw_only=True)
class ScalesRecovery(Recovery):
    """Trains one factor for each kept channel or head on the error of the block's output.

    The factor multiplies what reads the structure, and is folded into these weights. Norms and
    biases are trained too. There are few factors, so little text is needed.

    Args:
        sequences: Sequences of text to train on.
        held_out: Sequences that decide when to stop.
        steps: Steps of Adam for each block, at most.
        rate: Its greatest step.
        batch: Sequences of a step.
    """

    units: ClassVar[tuple[str, ...]] = ("width", "heads")
    loss: ClassVar[str] = "relative error of the last block"
    offloads: ClassVar[bool] = True

    sequences: int = 16
    steps: int = 100
    rate: float = 1e-3
    batch: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(steps=self.steps, rate=self.rate, batch=self.batch)

    def train(self, problem: RecoveryProblem) -> Recovered:
        """Train one block after the other."""
        groups = _list_groups(problem.subject)

        def make_form(parameter: nn.Parameter, _: Tensor) -> nn.Module:
            return Scaled(*groups[id(parameter)])

        def choose_readers(block: nn.Module) -> Chosen:
            chosen = choose(problem.subject, block)
            slots = {slot.name: slot.parameter for slot in list_slots(block)}
            kept = {n: mask for n, mask in chosen.masks.items() if id(slots[n]) in groups}
            return Chosen(kept, chosen.vectors)

        how = BlockTraining(
            self.steps, self.rate, self.batch, True, lambda _: make_form, choose_readers
        )
        return BlockReconstruction(problem, how).run()

    def count_parts(self, problem: RecoveryProblem) -> int:
        """Return the number of blocks."""
        return len(problem.subject.blocks)


def _list_groups(subject: PrunableModel) -> dict[int, tuple[Tensor, int]]:
    """Return the structure of each input of the layers that read structures.

    Returns:
        By ``id`` of the layer's weight: the structures, ``(inputs,)`` int64, and the axis of the
        stored weight that the inputs lie on.
    """
    found = {}
    for view in subject.views.values():
        if not isinstance(view, StructuredView):
            continue
        for part in view.parts:
            if part.consumer:
                weight = part.linear.weight
                stored = as_matrix(part.linear, weight)
                count, size = part.index.shape
                groups = torch.full((stored.shape[1],), count)  # what belongs to none
                groups[part.index.flatten()] = torch.arange(count).repeat_interleave(size)
                axis = 1 if stored is weight else 0
                found[id(weight)] = (groups.to(weight.device), axis)
    return found
