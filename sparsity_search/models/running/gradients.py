"""Gradients of the dense model's loss with respect to the prunable weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sparsity_search.evidence.evidence import WeightGradient
from sparsity_search.models.anatomy.prunable import PrunableModel


def compute_weight_gradients(subject: PrunableModel, tokens: Tensor) -> dict[str, WeightGradient]:
    """Return the gradient of each unit's weight, from one backward pass per sequence.

    Args:
        subject: The model; unchanged afterwards.
        tokens: Calibration text, ``(n_sequences, length)`` int64.

    Raises:
        ConfigError: The model is offloaded.
    """
    subject.check_not_offloaded()
    sums = {name: torch.zeros(view.read().shape) for name, view in subject.views.items()}
    squares = {name: torch.zeros_like(total) for name, total in sums.items()}

    def add() -> None:
        for name, view in subject.views.items():
            gradient = view.read_gradient().float().cpu()
            sums[name] += gradient
            squares[name] += gradient.square()

    run_backward(subject, subject.parameters(), tokens, add)
    return {
        name: WeightGradient(mean=sums[name] / len(tokens), rms=(square / len(tokens)).sqrt())
        for name, square in squares.items()
    }


def run_backward(
    subject: PrunableModel,
    parameters: Sequence[Tensor],
    tokens: Tensor,
    on_pass: Callable[[], None],
) -> None:
    """Run one backward pass of the loss for each sequence.

    Args:
        subject: The model; unchanged afterwards.
        parameters: Parameters whose ``grad`` holds the gradient of the pass.
        tokens: Calibration text, ``(n_sequences, length)`` int64.
        on_pass: Function called after each pass, which reads the gradients.

    Raises:
        ConfigError: The model is offloaded.
    """
    subject.check_not_offloaded()
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for sequence in tokens:
            torch.autograd.backward(_compute_loss(subject.model, sequence[None]))
            on_pass()
            for parameter in parameters:
                parameter.grad = None
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None


def _compute_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of one sequence."""
    tokens = tokens.to(next(model.parameters()).device)
    with torch.enable_grad():
        scores = model(input_ids=tokens, use_cache=False).logits[0, :-1].float()
        return nn.functional.cross_entropy(scores, tokens[0, 1:])
