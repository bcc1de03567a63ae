"""The language-model head, applied apart from the decoder to compute logits in small chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sparsity_search.errors import ModelError

#: Positions and tokens of the vocabulary whose logits a CPU computes at once: 2 MB of float32,
#: which stay in its cache. Larger tensors return to the system whenever they are freed, and page
#: faults then take as long as the sums.
POSITIONS, TILE = 512, 1024


def compute_last_hidden(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the decoder's output after its final norm, ``(batch, length, hidden)``.

    If the model has no decoder of its own under the library's name, as Llama 4 has not, it is
    what the head reads.

    Raises:
        ModelError: The model has no head.
    """
    decoder: Any = model.base_model
    tokens = tokens.to(next(model.parameters()).device)
    if decoder is not model:
        output = decoder(input_ids=tokens, use_cache=False)
        if (hidden := getattr(output, "last_hidden_state", None)) is not None:
            return hidden  # type: ignore[no-any-return]
    return _read_head_input(model, tokens)


class _Reached(Exception):
    """Ends a forward pass at the head."""


def _read_head_input(model: nn.Module, tokens: Tensor) -> Tensor:
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[operator]
    found: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        found.append(args[0])
        raise _Reached

    if head is not None:
        handle = head.register_forward_pre_hook(stop)
        try:
            model(input_ids=tokens, use_cache=False)
        except _Reached:
            return found[0]
        finally:
            handle.remove()
    raise ModelError(f"{type(model).__name__} has no head that predicts tokens")


def compute_logits(model: nn.Module, hidden: Tensor) -> Tensor:
    """Return the logits of hidden states, ``(..., vocabulary)``, in the model's dtype."""
    return _scale_and_cap(model, model.get_output_embeddings()(hidden))  # type: ignore[operator]


def compute_logit_tiles(model: nn.Module, hidden: Tensor) -> Iterator[Tensor]:
    """Yield logits in float32, ``(..., part)``, for one part of the vocabulary after the other.

    On a CPU, a part has `TILE` tokens. On other devices, and if the head is more than a linear
    layer, the only part is the whole vocabulary.
    """
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    if hidden.device.type != "cpu" or not _is_plain(head):
        yield compute_logits(model, hidden).float()
        return
    for start in range(0, head.out_features, TILE):
        part = slice(start, start + TILE)
        bias = None if head.bias is None else head.bias[part]
        yield _scale_and_cap(model, nn.functional.linear(hidden, head.weight[part], bias)).float()


def _is_plain(head: Any) -> bool:
    """Return whether a head is a linear layer without hooks or a replaced forward function."""
    watched = head._forward_hooks or head._forward_pre_hooks or "forward" in vars(head)
    return isinstance(head, nn.Linear) and type(head).forward is nn.Linear.forward and not watched


def _scale_and_cap(model: nn.Module, scores: Tensor) -> Tensor:
    """Scale and cap the outputs of the head as the model does."""
    config = model.config.get_text_config()  # type: ignore[operator, union-attr]
    for name in ("logit_scale", "lm_head_multiplier"):
        if factor := getattr(config, name, None):
            scores = scores * factor
    if divisor := getattr(config, "logits_scaling", None):
        scores = scores / divisor
    cap = getattr(config, "final_logit_softcapping", None)
    return scores if cap is None else torch.tanh(scores / cap) * cap


@torch.inference_mode()
def check_head(model: nn.Module, tokens: Tensor) -> None:
    """Check on a few tokens that `compute_logits` of `compute_last_hidden` are the model's own.

    Raises:
        ModelError: They are not, because the model transforms its logits in an unknown way.
    """
    few = tokens[:1, :8]
    own = model(input_ids=few.to(next(model.parameters()).device), use_cache=False).logits
    ours = compute_logits(model, compute_last_hidden(model, few))
    if not torch.allclose(own.float(), ours.float(), rtol=1e-2, atol=1e-2):
        raise ModelError(f"the head of {type(model).__name__} is not supported: logits differ")


@torch.inference_mode()
def compute_loss(
    model: nn.Module, hidden: Tensor, targets: Tensor, chunk: int | None = None
) -> Tensor:
    """Return the summed cross-entropy of one sequence in nats, as a float64 scalar.

    Args:
        model: The model, for its head.
        hidden: Last hidden states, ``(length, hidden)``.
        targets: The token that follows each position, ``(length,)``.
        chunk: Positions whose logits are computed at once; by default `POSITIONS`.
    """
    total = torch.zeros((), dtype=torch.float64, device=hidden.device)
    pairs = (torch.split(t, chunk or POSITIONS) for t in (hidden, targets))
    for states, tokens in zip(*pairs, strict=True):
        total += _compute_losses(model, states, tokens).double().sum()
    return total


def _compute_losses(model: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy at each position, ``(positions,)``."""
    target_scores = torch.zeros(len(targets), device=hidden.device)
    sums: list[Tensor] = []
    for scores in compute_logit_tiles(model, hidden):
        inside = (targets >= 0) & (targets < scores.shape[1])
        here = scores.gather(1, targets.clamp(0, scores.shape[1] - 1)[:, None])[:, 0]
        target_scores = torch.where(inside, here, target_scores)
        sums.append(scores.logsumexp(-1))
        targets = targets - scores.shape[1]  # relative to the next part
    return torch.stack(sums).logsumexp(0) - target_scores


def normalise_logits(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of logits, ``(…, n)``, and the logits' logsumexp, ``(…,)``."""
    sums = scores.logsumexp(-1)
    return scores - sums[..., None], sums


@torch.inference_mode()
def compute_divergence(
    model: nn.Module, dense: Tensor, pruned: Tensor, chunk: int | None = None
) -> float:
    """Return the sum over positions of ``KL(dense ‖ pruned)`` in nats, from last hidden states.

    Args:
        model: The model, for its head.
        dense: Hidden states of the dense model, ``(…, hidden)``.
        pruned: Hidden states of the pruned model, of the same shape.
        chunk: Positions whose logits are computed at once; by default `POSITIONS`.
    """
    total = 0.0
    pairs = (torch.split(states.flatten(0, -2), chunk or POSITIONS) for states in (dense, pruned))
    for before, after in zip(*pairs, strict=True):
        parts = DivergenceParts()
        for teacher, student in zip(
            compute_logit_tiles(model, before), compute_logit_tiles(model, after), strict=True
        ):
            expected, dense_sums = normalise_logits(teacher)
            actual, pruned_sums = normalise_logits(student)
            within = torch.linalg.vecdot(expected.exp(), expected - actual)
            parts.add(within, dense_sums, pruned_sums)
        total += float(parts.divergence().double().sum())
    return max(total, 0.0)  # rounding can make it negative


@dataclass(frozen=True)
class DivergenceParts:
    """Divergence over a vocabulary, accumulated over its parts by the chain rule.

    ``KL(p ‖ q)`` is the divergence of the choice of a part, plus the mean over ``p`` of the
    divergences within the parts (Cover and Thomas, Elements of Information Theory, theorem 2.5.3).
    """

    _within: list[Tensor] = field(default_factory=list)
    _dense: list[Tensor] = field(default_factory=list)
    _pruned: list[Tensor] = field(default_factory=list)

    def add(self, within: Tensor, dense: Tensor, pruned: Tensor) -> None:
        """Add a part.

        Args:
            within: Divergence within the part at each position, ``(positions,)``.
            dense: logsumexp of the dense model's logits in the part, ``(positions,)``.
            pruned: logsumexp of the pruned model's logits in the part, ``(positions,)``.
        """
        self._within.append(within)
        self._dense.append(dense)
        self._pruned.append(pruned)

    def divergence(self) -> Tensor:
        """Return the divergence at each position, ``(positions,)``."""
        p, q = (torch.stack(sums).log_softmax(0) for sums in (self._dense, self._pruned))
        return (p.exp() * (p - q + torch.stack(self._within))).sum(0)
