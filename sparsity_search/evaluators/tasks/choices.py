"""Log-likelihoods of continuations, by the same rules as lm-eval's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparsity_search.errors import DataError
from sparsity_search.models.running.head import last_hidden, loss


class Encoded(NamedTuple):
    """A continuation after its context.

    Attributes:
        inputs: Tokens that the model reads: all but the last, ``(n,)`` int64.
        targets: Tokens of the continuation, ``(m,)`` int64; the last ``m`` predictions are
            theirs.
    """

    inputs: Tensor
    targets: Tensor


def encode(tokenizer: Any, context: str, continuation: str, longest: int | None) -> Encoded:
    """Return the tokens of a continuation after its context.

    As in lm-eval, spaces that end the context go to the continuation, both are tokenised as one
    text with the tokenizer's special tokens, and what is too long is cut from the left.

    Args:
        tokenizer: The model's.
        context: Not empty.
        continuation: What is scored.
        longest: Tokens that the model can read; None for any number.

    Raises:
        DataError: The continuation has no tokens of its own, or more than the model can read.
    """
    stripped = context.rstrip()
    before = _ids(tokenizer, stripped)
    targets = _ids(tokenizer, context + continuation)[len(before) :]
    if not targets or (longest is not None and len(targets) > longest):
        raise DataError(
            f"the choice {continuation.strip()[:40]!r} has {len(targets)} tokens: it needs 1"
            + (f" to {longest}" if longest else " at least")
        )
    whole = before + targets
    kept = whole if longest is None else whole[-(longest + 1) :]
    return Encoded(torch.tensor(kept[:-1]), torch.tensor(targets))


@torch.inference_mode()
def log_likelihoods(
    model: nn.Module, sequences: Sequence[Encoded], batch_size: int
) -> list[float]:
    """Return the log-likelihood of each continuation in nats, summed over its tokens.

    Args:
        model: The model.
        sequences: What to score.
        batch_size: How many pass the model at once. Shorter ones are padded on the right, which
            a causal model does not see.
    """
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i].inputs))
    found = [0.0] * len(sequences)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        inputs = [sequences[i].inputs for i in chosen]
        hidden = last_hidden(model, nn.utils.rnn.pad_sequence(inputs, batch_first=True))
        for i, states in zip(chosen, hidden, strict=True):
            stop, targets = len(sequences[i].inputs), sequences[i].targets.to(states.device)
            found[i] = -float(loss(model, states[stop - len(targets) : stop], targets))
    return found


def _ids(tokenizer: Any, text: str) -> list[int]:
    # verbose=False: what is longer than the model's context is cut later
    ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
    return ids
