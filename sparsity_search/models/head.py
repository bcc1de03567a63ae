"""The language-model head apart from the decoder, so that logits can be made in small chunks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsity_search.errors import ModelError


def last_hidden(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the decoder's output after its final norm, ``(batch, length, hidden)``."""
    decoder = model.base_model
    device = next(model.parameters()).device
    output = decoder(input_ids=tokens.to(device), use_cache=False)  # type: ignore[operator]
    hidden: Tensor = output.last_hidden_state
    return hidden


def logits(model: nn.Module, hidden: Tensor) -> Tensor:
    """Return the logits of hidden states, ``(..., vocabulary)``, in the model's dtype."""
    config = model.config.get_text_config()  # type: ignore[operator, union-attr]
    result: Tensor = model.get_output_embeddings()(hidden)  # type: ignore[operator]
    for factor in ("logit_scale", "lm_head_multiplier"):
        result = result * (getattr(config, factor, None) or 1.0)
    result = result / (getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return result if cap is None else torch.tanh(result / cap) * cap


@torch.inference_mode()
def check_head(model: nn.Module, tokens: Tensor) -> None:
    """Check on a few tokens that `logits` of `last_hidden` are the model's own.

    Raises:
        ModelError: They are not: the model does something to its logits that is not known here.
    """
    few = tokens[:1, :8]
    own = model(input_ids=few.to(next(model.parameters()).device), use_cache=False).logits
    ours = logits(model, last_hidden(model, few))
    if not torch.allclose(own.float(), ours.float(), rtol=1e-2, atol=1e-2):
        raise ModelError(f"the head of {type(model).__name__} is not understood: logits differ")


def at_once(device: torch.device) -> int:
    """Return how many positions' logits are best alive at once.

    On a CPU few: glibc gives tensors beyond 32 MiB back to the system whenever they are freed,
    and page faults then take half of the time.
    """
    return 64 if device.type == "cpu" else 512


@torch.inference_mode()
def divergence(model: nn.Module, dense: Tensor, pruned: Tensor, chunk: int | None = None) -> float:
    """Return the sum over positions of ``KL(dense ‖ pruned)`` in nats, from last hidden states.

    Args:
        model: The model, for its head.
        dense: Hidden states of the dense model, ``(…, hidden)``.
        pruned: Of the pruned one, of the same shape.
        chunk: Positions whose logits are alive at once; by default `at_once`.
    """
    total, chunk = 0.0, chunk or at_once(dense.device)
    pairs = (torch.split(states.flatten(0, -2), chunk) for states in (dense, pruned))
    for before, after in zip(*pairs, strict=True):
        teacher, student = (logits(model, states).float() for states in (before, after))
        expected, found = teacher.log_softmax(-1), student.log_softmax(-1)
        total += float(torch.linalg.vecdot(expected.exp(), expected - found).double().sum())
    return max(total, 0.0)  # rounding can leave less than nothing
