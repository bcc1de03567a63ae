"""Removal of whole blocks or sublayers within a budget, for the allocators of depth."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor

from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.interfaces.allocator import Allocation, AllocationProblem
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.head import check_head, compute_loss
from sparsity_search.models.running.runner import BlockRunner
from sparsity_search.models.running.stream import Stream
from sparsity_search.profiles.profile import from_counts

#: Kinds of units that go as a whole, the usual one first.
DEPTH = ("blocks", "sublayers")


class RemovalState:
    """The units removed so far, one after another, within bounds and a budget.

    It starts from what the bounds demand; units that are empty in the dense model are among it.
    The budget is met as `Budget.project` meets it: it is never exceeded, and in the end less is
    left of it than any unit holds that may still go.

    Args:
        problem: Model, budget and bounds.
        keep: How many blocks at the first and at the last end go only when no other unit is left.
    """

    def __init__(self, problem: AllocationProblem, *, keep: tuple[int, int] = (0, 0)) -> None:
        self._layout = problem.layout
        self._upper = problem.bounds.upper
        self._counts = problem.bounds.lower.copy()
        self.left = problem.n_removed - int(self._counts @ self._layout.costs)
        first, last = keep[0], len(problem.subject.blocks) - keep[1]
        self._inner = np.array([first <= unit.block < last for unit in self._layout])

    @property
    def removed(self) -> list[int]:
        """Positions of the units that are removed, in forward order."""
        return [int(i) for i in np.flatnonzero(self._counts)]

    def candidates(self) -> list[int]:
        """Return the positions of the units that may go next, in forward order."""
        free = self._counts < self._upper
        if (free & self._inner).any():
            free &= self._inner
        return [int(i) for i in np.flatnonzero(free & (self._layout.costs <= self.left))]

    def remove(self, position: int) -> None:
        """Remove one of `candidates`."""
        self._counts[position] = 1
        self.left -= int(self._layout.costs[position])

    def by_score(self, scores: Mapping[int, float]) -> Allocation:
        """Remove units by rising score, those of equal score in forward order."""
        while candidates := self.candidates():
            self.remove(find_least(scores, candidates))
        return self.allocation()

    def allocation(self) -> Allocation:
        """Return the profile of what is removed."""
        return Allocation(from_counts(self._layout, self._counts))


def find_least(scores: Mapping[int, float], candidates: Iterable[int]) -> int:
    """Return the candidate of the least score, the first of equal ones.

    Raises:
        NumericalError: No candidate has a finite score.
    """
    found = min(candidates, key=lambda i: (_rank(scores[i]), i))
    if not math.isfinite(scores[found]):
        raise NumericalError("no depth score is finite: weights or hidden states are too large")
    return found


def _rank(score: float) -> float:
    return math.inf if math.isnan(score) else score


@contextmanager
def empty_units(subject: PrunableModel, *names: str) -> Iterator[None]:
    """Within, the units called ``names`` are removed: nothing is left, not even an output bias."""
    with ExitStack() as stack:
        for view in [subject.views[name] for name in names]:
            weight = view.read().clone()
            stack.callback(view.write, weight)
            view.write(torch.zeros_like(weight))
        yield


class RemovalLosses:
    """Losses of a text when one more unit is removed.

    Only the blocks from the removed unit on are run again; the hidden states before it are those
    of the model as it is.

    Args:
        subject: The model; its weights may change between calls.
        tokens: Calibration text, ``(n_sequences, length)`` int64, at least 2 tokens each.
        sequences: How many of its sequences to use; None for all.

    Raises:
        ConfigError: The sequences are too short.
        ModelError: What the model makes of its last hidden states is not understood.
    """

    def __init__(self, subject: PrunableModel, tokens: Tensor, sequences: int | None) -> None:
        tokens = tokens[:sequences]
        if tokens.shape[1] < 2:
            raise ConfigError("a loss needs calibration sequences of at least 2 tokens")
        check_head(subject.model, tokens)
        self._subject = subject
        self._n_targets = tokens[:, 1:].numel()
        self._runner = BlockRunner(subject, tokens)

    def of(self, candidates: Iterable[int]) -> dict[int, float]:
        """Return the loss without each candidate, in nats a token, by position.

        Args:
            candidates: Positions of units in the layout, in forward order.
        """
        found = {}
        hidden, block = self._runner.embed(), 0
        for position in candidates:
            unit = self._subject.layout[position]
            for before in range(block, unit.block):
                hidden = self._runner.run(before, hidden)
            block = unit.block
            with empty_units(self._subject, unit.name):
                found[position] = self._loss(block, hidden)
        return found

    @torch.inference_mode()
    def _loss(self, block: int, hidden: Sequence[Stream]) -> float:
        """Return the loss of the model that goes on at ``block`` with ``hidden``."""
        total, batches = 0.0, self._runner.batches
        for following in range(block, len(self._subject.blocks)):
            hidden = self._runner.run(following, hidden)
        for tokens, final in zip(batches, self._runner.finish(hidden), strict=True):
            total += sum(
                float(compute_loss(self._subject.model, part, wanted.to(part.device)))
                for part, wanted in zip(final[:, :-1], tokens[:, 1:], strict=True)
            )
        return total / self._n_targets


def check_settings(sequences: int | None = None, **blocks: int) -> None:
    """Check numbers of sequences and of blocks.

    Raises:
        ConfigError: ``sequences`` is less than 1, or a number of blocks less than 0.
    """
    if sequences is not None and sequences < 1:
        raise ConfigError(f"sequences must be at least 1, not {sequences}")
    for name, value in blocks.items():
        if value < 0:
            raise ConfigError(f"{name} must be at least 0, not {value}")
