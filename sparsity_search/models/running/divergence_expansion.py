"""The divergence of a pruned model from the dense one, to second order in its weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.head import (
    check_head,
    compute_divergence,
    compute_last_hidden,
    compute_logits,
)
from sparsity_search.models.running.recording import (
    BATCH,
    BackwardPass,
    Recordings,
    choose_positions,
    compute_slopes,
    compute_total_slope,
    draw_labels,
    find_affected_linears,
    record,
)


@dataclass(frozen=True, eq=False)
class DivergenceExpansion:
    """``KL(dense ‖ pruned)`` on a text, mean over tokens in nats, around any profile.

    Args:
        subject: The model, dense at construction; it may be pruned afterwards.
        text: ``(n_sequences, length)`` int64.
        positions: Number of positions per sequence from which the second order is estimated.
        seed: Seed of the labels drawn.

    Raises:
        ModelError: The head of the model is not supported, see `check_head`.
        ConfigError: A unit is not made of linear layers.
    """

    subject: PrunableModel
    text: Tensor
    positions: int
    seed: int

    def __post_init__(self) -> None:
        find_affected_linears(self.subject)
        check_head(self.subject.model, self.text)
        object.__setattr__(self, "_teacher", [self._hidden(rows) for rows in self._batches()])

    @torch.inference_mode()
    def value(self) -> float:
        """Return the divergence of the model with its current weights."""
        total = 0.0
        for index, rows in enumerate(self._batches()):
            total += compute_divergence(self.subject.model, self._dense(index), self._hidden(rows))
        return max(total, 0.0) / self.text.numel()  # in this order NaN stays NaN

    def recorded(self) -> tuple[float, Recordings]:
        """Return the divergence, and the recordings for its first and second order.

        The first order is the gradient of the divergence. The second order is the Fisher
        information of the pruned model at labels drawn from it, with independent positions.
        """
        total = 0.0

        def backward(scores: Tensor, rows: slice) -> Iterator[BackwardPass]:
            nonlocal total
            expected = self._expected(rows.start // BATCH)
            total += _sum_divergences(expected, scores)
            gradient = scores.float().softmax(-1) - expected.exp()
            yield BackwardPass(gradient.to(scores.dtype), summed=True)
            yield from draw_labels(scores, 1, self.seed, rows.start)

        positions = choose_positions(self.text.shape[1], self.positions, 1)
        recordings = record(self.subject, self.text, positions, backward)
        return max(total, 0.0) / self.text.numel(), recordings

    def change(self, name: str, change: Tensor, recordings: Recordings) -> float:
        """Return the predicted increase of the divergence when one unit's weights change."""
        view = self.subject.views[name]
        first = compute_total_slope(view, change, recordings) / self.text.numel()
        return first + float(compute_slopes(view, change, recordings).square().mean()) / 2

    def _batches(self) -> list[slice]:
        count = len(self.text)
        return [slice(start, min(start + BATCH, count)) for start in range(0, count, BATCH)]

    @torch.inference_mode()
    def _hidden(self, rows: slice) -> Tensor:
        return compute_last_hidden(self.subject.model, self.text[rows])

    def _dense(self, index: int) -> Tensor:
        teacher: list[Tensor] = self._teacher  # type: ignore[attr-defined]
        return teacher[index]

    @torch.no_grad()
    def _expected(self, index: int) -> Tensor:
        """Return the dense model's log-probabilities for a batch, in float32."""
        return compute_logits(self.subject.model, self._dense(index)).float().log_softmax(-1)


def _sum_divergences(expected: Tensor, scores: Tensor) -> float:
    """Return the sum over positions of the divergence from log-probabilities to logits."""
    pruned = scores.float().log_softmax(-1)
    return float(torch.linalg.vecdot(expected.exp(), expected - pruned).double().sum())
