"""Dense and pruned units, and what the whole model makes of them, through plain hooks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.walk import walk
from sparsity_search.profiles.layout import Unit
from sparsity_search.utils.random import derive_seed


def pruned_weights(
    subject: PrunableModel,
    tokens: Tensor,
    pruner: Pruner,
    tables: Sequence[tuple[int, ...]],
    seed: int = 0,
) -> list[tuple[Unit, list[Tensor]]]:
    """Return every unit with its weights at each count, from the dense model's evidence."""
    visits = walk(
        subject, tokens, pruner.requires, rewritten=False, gradient=pruner.needs_gradient
    )
    evidence = {name: known for visit in visits for name, known in visit.evidence.items()}
    found = []
    for unit, counts in zip(subject.layout, tables, strict=True):
        dense, known = subject.views[unit.name].read(), evidence[unit.name]
        ties = derive_seed(seed, "ties", unit.name)
        alone = [
            pruner.prune(dense, known, [count], seed=ties).at(dense, count) for count in counts
        ]
        found.append((unit, alone))
    return found


@contextmanager
def written(subject: PrunableModel, name: str, weight: Tensor) -> Iterator[nn.Module]:
    """Yield the model with one unit's weights replaced."""
    with subject.preserved():
        subject.views[name].write(weight)
        yield subject.model


@torch.inference_mode()
def log_probabilities(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the model's own predictions in float64, ``(n, length, vocabulary)``."""
    logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits.double().log_softmax(-1)


def mean_divergence(dense: Tensor, pruned: Tensor) -> float:
    """Return the mean divergence over tokens from log-probabilities."""
    return float((dense.exp() * (dense - pruned)).sum(-1).mean())


@torch.inference_mode()
def block_states(subject: PrunableModel, block: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a block reads and writes in a pass of the whole model, in float64."""
    seen: list[Tensor] = []

    def take(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])
        seen.append(output if isinstance(output, Tensor) else output[0])

    handle = subject.blocks[block].register_forward_hook(take, with_kwargs=True)
    subject.model(input_ids=tokens, use_cache=False)
    handle.remove()
    return seen[0].double(), seen[1].double()


@torch.inference_mode()
def module_inputs(subject: PrunableModel, name: str, tokens: Tensor) -> Tensor:
    """Return all that a unit reads, ``(tokens, inputs)`` float64, in the matrix's order."""
    view, seen = subject.views[name], []
    handle = view.module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    subject.model(input_ids=tokens, use_cache=False)
    handle.remove()
    return view.inputs(seen[0]).flatten(0, -2).double()
