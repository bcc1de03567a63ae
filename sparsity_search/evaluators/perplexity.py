"""Perplexity of the text itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsity_search.interfaces.evaluator import Evaluator, Proxy, split_batches
from sparsity_search.models.running.head import check_head, compute_last_hidden, compute_loss
from sparsity_search.trials.history import Score


@dataclass(frozen=True, kw_only=True)
class PerplexityEvaluator(Evaluator):
    """``exp`` of the mean negative log-likelihood of each token given those before it.

    The loss is taken in float32 whatever the model's dtype. A sequence's part is its mean
    negative log-likelihood in nats.

    Args:
        chunk: Positions whose logits are computed at once; by default 512. A CPU computes them
            for 1,024 tokens of the vocabulary at a time.
    """

    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"chunk must be at least 1, not {self.chunk}")

    def bind(self, dense: nn.Module, tokens: Tensor, tokenizer: Any = None) -> Proxy:  # noqa: ARG002
        """Return a proxy; nothing of the dense model is kept."""
        check_head(dense, tokens)
        return _PerplexityProxy(tokens, self.chunk)


class _PerplexityProxy(Proxy):
    def __init__(self, tokens: Tensor, chunk: int | None) -> None:
        self._tokens = tokens
        self._chunk = chunk

    @torch.inference_mode()
    def score(self, model: nn.Module, rows: Sequence[int]) -> Score:
        parts: list[Tensor] = []
        for batch in split_batches(model, rows, self._tokens.shape[1]):
            tokens = self._tokens[list(batch)]
            hidden = compute_last_hidden(model, tokens)
            parts += [
                compute_loss(model, states, targets.to(states.device), self._chunk) / len(targets)
                for states, targets in zip(hidden[:, :-1], tokens[:, 1:], strict=True)
            ]
        return self.read_back(parts)

    def combine(self, parts: Sequence[float]) -> Score:
        """Return the perplexity of rows from their mean losses."""
        mean = sum(parts) / len(parts)
        return Score(math.exp(mean) if mean < 700 else math.inf, tuple(parts))
