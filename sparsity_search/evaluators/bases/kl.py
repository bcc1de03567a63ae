"""Divergence from a dense model whose last hidden states are kept, in chunks of positions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsity_search.models.running.head import (
    POSITIONS,
    DivergenceParts,
    compute_logit_tiles,
    normalise_logits,
)


def check_kl_settings(cache_mib: int, chunk: int | None) -> None:
    """Check the settings of `PoolDivergence`.

    Raises:
        ValueError: One is out of range.
    """
    if cache_mib < 0 or (chunk is not None and chunk < 1):
        raise ValueError("cache_mib must not be negative, and chunk at least 1")


@dataclass(frozen=True)
class _Teacher:
    """The dense model's predictions for a part of the vocabulary at some positions, in float32.

    Attributes:
        probabilities: Within the part, ``(positions, part)``.
        negative_entropy: Σ p log p at each position.
        mass: Σ p at each position: 1 up to rounding, which the large logsumexp would magnify.
        logsumexp: That of the logits at each position.
    """

    probabilities: Tensor
    negative_entropy: Tensor
    mass: Tensor
    logsumexp: Tensor


class PoolDivergence:
    """``KL(dense ‖ pruned)`` of rows of a pool, over the full vocabulary.

    For teacher probabilities ``p`` and student logits ``z`` at one position,
    ``KL = Σ p log p − Σ p z + logsumexp z``. It is computed in float32 within parts of the
    vocabulary, which `DivergenceParts` joins. The probabilities of the first rows in use are kept,
    up to a memory bound.

    Args:
        hidden: Last hidden states of the dense model, ``(n_sequences, length, hidden)``.
        cache_mib: Memory for teacher probabilities, in MiB.
        chunk: Positions whose logits are computed at once; by default `POSITIONS`.
        positions: The positions of each row that count, ``(n_sequences, n)`` int64; by default
            all.
    """

    def __init__(
        self, hidden: Tensor, cache_mib: int, chunk: int | None, positions: Tensor | None = None
    ) -> None:
        self._positions = None if positions is None else positions.to(hidden.device)
        rows = torch.arange(len(hidden), device=hidden.device)[:, None]
        self._hidden = hidden if self._positions is None else hidden[rows, self._positions]
        self._free = cache_mib * 2**20
        self._chunk = chunk or POSITIONS
        self._cache: dict[tuple[int, int], list[_Teacher]] = {}

    @torch.inference_mode()
    def measure(self, model: nn.Module, row: int, hidden: Tensor) -> Tensor:
        """Return the mean divergence of one row in nats, as a float64 scalar.

        Args:
            model: Any model with the dense head.
            row: Index of the sequence.
            hidden: The pruned model's last hidden states for it, ``(length, hidden)``.
        """
        if self._positions is not None:
            hidden = hidden[self._positions[row]]
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        for start in range(0, len(hidden), self._chunk):
            parts, states = DivergenceParts(), hidden[start : start + self._chunk]
            for teacher, student in zip(
                self._teach(model, row, start), compute_logit_tiles(model, states), strict=True
            ):
                sums = student.logsumexp(-1)
                expected = torch.linalg.vecdot(teacher.probabilities, student)
                within = teacher.negative_entropy - expected + teacher.mass * sums
                parts.add(within, teacher.logsumexp, sums)
            total += parts.divergence().double().sum()
        return (total / len(hidden)).clamp_min(0)  # rounding can leave -1e-9 of nothing

    def _teach(self, model: nn.Module, row: int, start: int) -> Iterable[_Teacher]:
        """Return a chunk of the teacher, from the cache or from its hidden states."""
        key = (row, start)
        if key in self._cache:
            return self._cache[key]
        states = self._hidden[row, start : start + self._chunk]
        teachers = map(_read_logits, compute_logit_tiles(model, states))
        vocabulary: int = model.config.get_text_config().vocab_size  # type: ignore[operator, union-attr]
        size = 4 * len(states) * vocabulary
        if size > self._free:
            return teachers
        self._free -= size
        self._cache[key] = list(teachers)
        return self._cache[key]


def _read_logits(scores: Tensor) -> _Teacher:
    """Return the predictions of logits, ``(positions, part)``."""
    log_probabilities, sums = normalise_logits(scores)
    probabilities = log_probabilities.exp()
    negative_entropy = torch.linalg.vecdot(probabilities, log_probabilities)
    return _Teacher(probabilities, negative_entropy, probabilities.sum(-1), sums)
