"""Kullback-Leibler divergence of the pruned model's predictions from the dense model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsity_search.evaluators.bases.kl import PoolDivergence, check_kl_settings
from sparsity_search.interfaces.evaluator import Evaluator, Proxy, split_batches
from sparsity_search.models.running.head import check_head, compute_last_hidden
from sparsity_search.trials.history import Score
from sparsity_search.utils.random import create_generator


@dataclass(frozen=True, kw_only=True)
class KLDivergenceEvaluator(Evaluator):
    """``KL(dense ‖ pruned)`` over the full vocabulary, mean over tokens, in nats.

    The fitness of EvoPress (arXiv 2410.14649, section 3). The proxy keeps the dense model's last
    hidden states, and its probabilities for the first rows in use, up to a memory bound. It never
    holds all logits of the pool.

    Args:
        cache_mib: Memory for teacher probabilities, in MiB.
        chunk: Positions whose logits are computed at once; by default 512. A CPU computes them
            for 1,024 tokens of the vocabulary at a time.
        positions: Positions of each sequence that count, drawn once for all candidates. The head
            runs on these alone, and the score is an estimate. By default all count.
    """

    cache_mib: int = 1024
    chunk: int | None = None
    positions: int | None = None

    def __post_init__(self) -> None:
        check_kl_settings(self.cache_mib, self.chunk)
        if self.positions is not None and self.positions < 1:
            raise ValueError(f"positions must be at least 1, not {self.positions}")

    @torch.inference_mode()
    def bind(self, dense: nn.Module, tokens: Tensor, tokenizer: Any = None) -> Proxy:  # noqa: ARG002
        """Return a proxy that holds the dense model's last hidden states of ``tokens``."""
        check_head(dense, tokens)
        rows = range(len(tokens))
        hidden = [
            compute_last_hidden(dense, tokens[list(b)])
            for b in split_batches(dense, rows, tokens.shape[1])
        ]
        positions = self._draw_positions(*tokens.shape)
        divergence = PoolDivergence(torch.cat(hidden), self.cache_mib, self.chunk, positions)
        return _KLProxy(tokens, divergence)

    def _draw_positions(self, n_sequences: int, length: int) -> Tensor | None:
        """Draw the positions of each sequence that count, ``(n_sequences, positions)``."""
        if self.positions is None or self.positions >= length:
            return None
        orders = [
            create_generator(0, "positions", i).permutation(length) for i in range(n_sequences)
        ]
        return torch.tensor(np.sort(np.array(orders)[:, : self.positions]))


class _KLProxy(Proxy):
    def __init__(self, tokens: Tensor, divergence: PoolDivergence) -> None:
        self._tokens = tokens
        self._divergence = divergence

    @torch.inference_mode()
    def score(self, model: nn.Module, rows: Sequence[int]) -> Score:
        parts: list[Tensor] = []
        for batch in split_batches(model, rows, self._tokens.shape[1]):
            hidden = compute_last_hidden(model, self._tokens[list(batch)])
            parts += [
                self._divergence.measure(model, row, states)
                for row, states in zip(batch, hidden, strict=True)
            ]
        return self.read_back(parts)
