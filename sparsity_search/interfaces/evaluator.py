"""The interface of a proxy evaluator: what a pruned model is worth. Lower is better."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsity_search.errors import DataError
from sparsity_search.models.running.runner import at_once
from sparsity_search.trials.history import Score


class Proxy(ABC):
    """An evaluator bound to a dense model and a pool of text."""

    @abstractmethod
    def score(self, model: nn.Module, rows: Sequence[int]) -> Score:
        """Return the score of ``model`` on some rows of the pool.

        Args:
            model: The dense model's architecture with any weights in its blocks; embeddings,
                final norm and head are the dense ones.
            rows: Indices of sequences, or of rows of the evaluator's own data.

        Returns:
            The score, and its part for each row in the order given.
        """

    def joined(self, parts: Sequence[float]) -> Score:
        """Return the score that the parts of some rows make: their mean, unless told otherwise."""
        return Score(sum(parts) / len(parts), tuple(parts))

    def read(self, parts: Sequence[Tensor]) -> Score:
        """Return the score that scalars make; the device is waited for once, not for each."""
        return self.joined(torch.stack(tuple(parts)).tolist())


@dataclass(frozen=True)
class OwnData:
    """What an evaluator reads itself, in place of the text.

    Attributes:
        n_rows: Rows that it has.
        digest: 16 hexadecimal digits that identify its contents.
    """

    n_rows: int
    digest: str

    def check(self, needed: int, remedy: str) -> None:
        """Check that there are enough rows.

        Raises:
            DataError: There are fewer than ``needed``; ``remedy`` says what to change.
        """
        if needed > self.n_rows:
            raise DataError(
                f"the evaluator's data has {self.n_rows} rows, but {needed} are needed: {remedy}"
            )


class Evaluator(ABC):
    """Scores models. Plugins are frozen keyword-only dataclasses of hyper-parameters."""

    @abstractmethod
    def bind(self, dense: nn.Module, tokens: Tensor, tokenizer: Any = None) -> Proxy:
        """Return a proxy for a pool of text; what it needs of the dense model it takes now.

        Args:
            dense: The dense model.
            tokens: ``(n_sequences, length)`` int64, at least 2 tokens each; those of an
                evaluator with own data are not read.
            tokenizer: The model's; few evaluators need it.
        """

    def own_data(self) -> OwnData | None:
        """Return what the rows are if they are not the sequences of the text.

        A job checks it before any work, and keeps its digest. The rows of a search are the first
        ones, those of the final comparison the next.

        Raises:
            DataError: It cannot be read.
            ConfigError: A package that reads it is missing.
        """
        return None


def batches(model: nn.Module, rows: Sequence[int], length: int) -> list[Sequence[int]]:
    """Split ``rows`` into those that pass the model at once."""
    size = at_once(next(model.parameters()).device, length)
    return [rows[i : i + size] for i in range(0, len(rows), size)]
