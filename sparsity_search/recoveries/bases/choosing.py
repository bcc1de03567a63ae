"""Which parameters of a pruned model a recovery trains."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import Tensor, nn

from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.recoveries.bases.trainable import Slot, list_slots


@dataclass(frozen=True, eq=False)
class Chosen:
    """The parameters of a module that are trained.

    Attributes:
        masks: Kept entries of weights that hold pruned units, by name: bool, in their shape.
        vectors: Names of norms and biases.
    """

    masks: dict[str, Tensor]
    vectors: tuple[str, ...]


def choose(subject: PrunableModel, module: nn.Module) -> Chosen:
    """Return what is trained of a module: weights that hold units, norms and biases.

    Weights that several blocks share, and those of no unit (embeddings, routers, what
    ``--exclude`` names), are left alone.

    Args:
        subject: The pruned model.
        module: A block of it, or all of it.
    """
    times = Counter(id(p) for block in subject.blocks for p in {*block.parameters()})
    units = {id(parameter) for parameter in subject.parameters()}
    kept: dict[str, Tensor] = {}
    vectors: list[str] = []
    for slot in list_slots(module):
        parameter = slot.parameter
        if times[id(parameter)] > 1:
            continue
        if id(parameter) in units:
            kept[slot.name] = parameter.detach() != 0
        elif _is_vector(slot) and times[id(parameter)] == 1:
            vectors.append(slot.name)
    return Chosen(kept, tuple(vectors))


def _is_vector(slot: Slot) -> bool:
    """Return whether a parameter is a norm's weight or a bias."""
    return slot.parameter.ndim == 1
