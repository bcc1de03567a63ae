"""The divergence of a pruned model, to second order in its profile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.head import check_head, divergence, last_hidden, logits
from sparsity_search.models.running.recording import (
    BATCH,
    Backward,
    Recordings,
    drawn_labels,
    linears_of,
    record,
    runs,
    slope,
    slopes,
)


@dataclass(frozen=True, eq=False)
class Divergence:
    """``KL(dense ‖ pruned)`` on some text, mean over tokens in nats, around any profile.

    Args:
        subject: The model, dense now; later as it is pruned.
        text: ``(n_sequences, length)`` int64.
        positions: How many positions of each sequence tell the second order.
        seed: Of the labels drawn.

    Raises:
        ModelError: What the model makes of its last hidden states is not understood.
        ConfigError: A unit is not made of linear layers.
    """

    subject: PrunableModel
    text: Tensor
    positions: int
    seed: int

    def __post_init__(self) -> None:
        linears_of(self.subject)
        check_head(self.subject.model, self.text)
        object.__setattr__(self, "_teacher", [self._hidden(rows) for rows in self._batches()])

    @torch.inference_mode()
    def value(self) -> float:
        """Return the divergence of the model as it is."""
        total = 0.0
        for index, rows in enumerate(self._batches()):
            total += divergence(self.subject.model, self._dense(index), self._hidden(rows))
        return max(total, 0.0) / self.text.numel()  # in this order NaN stays NaN

    def recorded(self) -> tuple[float, Recordings]:
        """Return the divergence, and what its first and second order follow from.

        First order: the gradient of the divergence. Second order: Fisher information of the
        pruned model at labels that it draws, positions taken as independent.
        """
        total = 0.0

        def backward(scores: Tensor, rows: slice) -> Iterator[Backward]:
            nonlocal total
            expected = self._expected(rows.start // BATCH)
            total += _divergence(expected, scores)
            gradient = scores.float().softmax(-1) - expected.exp()
            yield Backward(gradient.to(scores.dtype), summed=True)
            yield from drawn_labels(scores, 1, self.seed, rows.start)

        positions = runs(self.text.shape[1], self.positions, 1)
        recordings = record(self.subject, self.text, positions, backward)
        return max(total, 0.0) / self.text.numel(), recordings

    def change(self, name: str, change: Tensor, recordings: Recordings) -> float:
        """Return what a change of one unit's weights is predicted to add to the divergence."""
        view = self.subject.views[name]
        first = slope(view, change, recordings) / self.text.numel()
        return first + float(slopes(view, change, recordings).square().mean()) / 2

    def _batches(self) -> list[slice]:
        count = len(self.text)
        return [slice(start, min(start + BATCH, count)) for start in range(0, count, BATCH)]

    @torch.inference_mode()
    def _hidden(self, rows: slice) -> Tensor:
        return last_hidden(self.subject.model, self.text[rows])

    def _dense(self, index: int) -> Tensor:
        teacher: list[Tensor] = self._teacher  # type: ignore[attr-defined]
        return teacher[index]

    @torch.no_grad()
    def _expected(self, index: int) -> Tensor:
        """Return the dense model's log-probabilities of a batch, in float32."""
        return logits(self.subject.model, self._dense(index)).float().log_softmax(-1)


def _divergence(expected: Tensor, scores: Tensor) -> float:
    """Return the sum of divergences from log-probabilities to logits."""
    found = scores.float().log_softmax(-1)
    return float(torch.linalg.vecdot(expected.exp(), expected - found).double().sum())
