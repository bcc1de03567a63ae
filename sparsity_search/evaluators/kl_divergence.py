"""Kullback-Leibler divergence of the pruned model's predictions from the dense model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsity_search.evaluators.base import Evaluator, Proxy, batches
from sparsity_search.history import Score
from sparsity_search.models.head import check_head, last_hidden, logits


@dataclass(frozen=True, kw_only=True)
class KLDivergence(Evaluator):
    """``KL(dense ‖ pruned)`` over the full vocabulary, mean over tokens, in nats.

    The fitness of EvoPress (arXiv 2410.14649, section 3). For teacher probabilities ``p`` and
    student logits ``z`` at one position, ``KL = Σ p log p − Σ p z + logsumexp z``, reduced in
    float32. Of the dense model the last hidden states are kept, and the probabilities that follow
    from them for the rows used first, up to a memory bound: all logits of the pool are never
    alive.

    Args:
        cache_mib: Memory for teacher probabilities, in MiB.
        chunk: Positions whose logits are alive at once.
    """

    cache_mib: int = 1024
    chunk: int = 256

    def __post_init__(self) -> None:
        if self.cache_mib < 0 or self.chunk < 1:
            raise ValueError("cache_mib must not be negative, and chunk at least 1")

    @torch.inference_mode()
    def bind(self, dense: nn.Module, tokens: Tensor) -> Proxy:
        """Return a proxy that holds the dense model's last hidden states of ``tokens``."""
        check_head(dense, tokens)
        rows = range(len(tokens))
        hidden = [last_hidden(dense, tokens[list(b)]) for b in batches(rows, tokens.shape[1])]
        return _KLProxy(self, tokens, torch.cat(hidden))


@dataclass(frozen=True)
class _Teacher:
    """A chunk of one row of the dense model, in float32.

    Attributes:
        probabilities: ``(positions, vocabulary)``.
        negative_entropy: Σ p log p of each position.
        mass: Σ p of each position: 1 up to rounding, which the large logsumexp would magnify.
    """

    probabilities: Tensor
    negative_entropy: Tensor
    mass: Tensor


class _KLProxy(Proxy):
    def __init__(self, settings: KLDivergence, tokens: Tensor, hidden: Tensor) -> None:
        self._chunk = settings.chunk
        self._free = settings.cache_mib * 2**20
        self._tokens = tokens
        self._hidden = hidden
        self._cache: dict[tuple[int, int], _Teacher] = {}

    @torch.inference_mode()
    def score(self, model: nn.Module, rows: Sequence[int]) -> Score:
        parts: list[float] = []
        for batch in batches(rows, self._tokens.shape[1]):
            hidden = last_hidden(model, self._tokens[list(batch)])
            parts += [
                float(self._divergence(model, row, states))
                for row, states in zip(batch, hidden, strict=True)
            ]
        return Score(sum(parts) / len(parts), tuple(parts))

    def _divergence(self, model: nn.Module, row: int, hidden: Tensor) -> Tensor:
        """Return the mean divergence of one row in float64."""
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        for start in range(0, len(hidden), self._chunk):
            teacher = self._teacher(model, row, start)
            student = logits(model, hidden[start : start + self._chunk]).float()
            expected = torch.linalg.vecdot(teacher.probabilities, student)
            divergence = teacher.negative_entropy - expected + teacher.mass * student.logsumexp(-1)
            total += divergence.double().sum()
        return (total / len(hidden)).clamp_min(0)  # rounding can leave -1e-9 of nothing

    def _teacher(self, model: nn.Module, row: int, start: int) -> _Teacher:
        """Return a chunk of the teacher, from the cache or from its hidden states."""
        key = (row, start)
        if key in self._cache:
            return self._cache[key]
        states = self._hidden[row, start : start + self._chunk]
        log_probabilities = logits(model, states).float().log_softmax(-1)
        probabilities = log_probabilities.exp()
        negative_entropy = torch.linalg.vecdot(probabilities, log_probabilities)
        teacher = _Teacher(probabilities, negative_entropy, probabilities.sum(-1))
        size = probabilities.numel() * probabilities.element_size()
        if size <= self._free:
            self._free -= size
            self._cache[key] = teacher
        return teacher
