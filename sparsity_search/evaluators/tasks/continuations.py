"""Log-likelihoods of continuations, by the same rules as lm-eval's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparsity_search.errors import DataError
from sparsity_search.models.running.head import compute_last_hidden, compute_loss


class EncodedContinuation(NamedTuple):
    """A continuation after its context.

    Attributes:
        inputs: Tokens that the model reads: all but the last, ``(n,)`` int64.
        targets: Tokens of the continuation, ``(m,)`` int64, predicted at the last ``m`` positions.
    """

    inputs: Tensor
    targets: Tensor


def encode(
    tokenizer: Any, context: str, continuation: str, longest: int | None
) -> EncodedContinuation:
    """Return the tokens of a continuation after its context.

    As in lm-eval, trailing spaces of the context go to the continuation, both are tokenised as
    one text with the tokenizer's special tokens, and a text that is too long is cut on the left.

    Args:
        tokenizer: The model's.
        context: Not empty.
        continuation: The text to score.
        longest: Most tokens that the model can read; None for no limit.

    Raises:
        DataError: The continuation has no tokens of its own, or more than the model can read.
    """
    stripped = context.rstrip()
    before = _tokenise(tokenizer, stripped)
    targets = _tokenise(tokenizer, context + continuation)[len(before) :]
    if not targets or (longest is not None and len(targets) > longest):
        raise DataError(
            f"the choice {continuation.strip()[:40]!r} has {len(targets)} tokens: it needs 1"
            + (f" to {longest}" if longest else " at least")
        )
    whole = before + targets
    kept = whole if longest is None else whole[-(longest + 1) :]
    return EncodedContinuation(torch.tensor(kept[:-1]), torch.tensor(targets))


@torch.inference_mode()
def compute_log_likelihoods(
    model: nn.Module, sequences: Sequence[EncodedContinuation], batch_size: int
) -> list[float]:
    """Return the log-likelihood of each continuation in nats, summed over its tokens.

    Args:
        model: The model.
        sequences: The continuations to score.
        batch_size: Sequences in a forward pass. Shorter ones are padded on the right, which a
            causal model does not see.
    """
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i].inputs))
    scores = [0.0] * len(sequences)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        inputs = [sequences[i].inputs for i in batch]
        hidden = compute_last_hidden(model, nn.utils.rnn.pad_sequence(inputs, batch_first=True))
        for i, states in zip(batch, hidden, strict=True):
            stop, targets = len(sequences[i].inputs), sequences[i].targets.to(states.device)
            scores[i] = -float(compute_loss(model, states[stop - len(targets) : stop], targets))
    return scores


def _tokenise(tokenizer: Any, text: str) -> list[int]:
    # verbose=False: texts that are too long for the model are cut later
    ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
    return ids
