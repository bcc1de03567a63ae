"""The interface of a proxy evaluator: what a pruned model is worth. Lower is better."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from sparsity_search.history import Score


class Proxy(ABC):
    """An evaluator bound to a dense model and a pool of text."""

    @abstractmethod
    def score(self, model: nn.Module, rows: Sequence[int]) -> Score:
        """Return the score of ``model`` on some sequences of the pool.

        Args:
            model: The dense model's architecture with any weights in its blocks; embeddings,
                final norm and head are the dense ones.
            rows: Indices of sequences.

        Returns:
            The score, and its part for each row in the order given.
        """


class Evaluator(ABC):
    """Scores models. Plugins are frozen keyword-only dataclasses of hyper-parameters."""

    @abstractmethod
    def bind(self, dense: nn.Module, tokens: Tensor) -> Proxy:
        """Return a proxy for a pool of text; what it needs of the dense model it takes now.

        Args:
            dense: The dense model.
            tokens: ``(n_sequences, length)`` int64, at least 2 tokens each.
        """


def batches(rows: Sequence[int], length: int, tokens_at_once: int = 2048) -> list[Sequence[int]]:
    """Split ``rows`` so that a batch holds about ``tokens_at_once`` tokens."""
    size = max(1, tokens_at_once // length)
    return [rows[i : i + size] for i in range(0, len(rows), size)]
