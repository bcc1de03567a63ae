"""The interface of a proxy evaluator: a score for pruned models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparsity_search.errors import DataError
from sparsity_search.models.running.runner import compute_batch_size
from sparsity_search.trials.history import Score


class Proxy(ABC):
    """An evaluator bound to a dense model and a pool of text. Lower scores are better.

    Rules for `score`:

    - Each row has one part, in the given order. A part depends on its row alone: not on the
      other rows, their order or number, or on the rest of the pool.
    - Parts may be discrete, such as a share of wrong predictions.
    - Weights that give NaN or infinite logits give a score that is not finite, never an
      exception. Beware of functions that hide a NaN, such as ``argmax``.
    - Equal calls give equal scores, whatever was scored before. No global random state is read
      or changed.
    - The model and the text are only read, and no hook stays in the model.
    - Compute in float32 whatever the model's dtype: a bfloat16 model scores within 10% of its
      float32 twin.
    - Read no number from a tensor before the end, since on a GPU each waits for all work before
      it: pass scalar tensors to `read_back`.
    """

    @abstractmethod
    def score(self, model: nn.Module, rows: Sequence[int]) -> Score:
        """Return the score of ``model`` on some rows of the pool.

        Args:
            model: The dense model's architecture with any weights in its blocks; embeddings,
                final norm and head are the dense ones. It may be the dense model itself,
                rewritten in place.
            rows: Indices of sequences, or of rows of the evaluator's own data.

        Returns:
            The score, and its part for each row in the order given.

        Raises:
            DataError: A row is not in the evaluator's own data.
        """

    def combine(self, parts: Sequence[float]) -> Score:
        """Return the score of rows from their parts: the mean, unless a plugin overrides this."""
        return Score(sum(parts) / len(parts), tuple(parts))

    def read_back(self, parts: Sequence[Tensor]) -> Score:
        """Return the score of rows from scalar tensors; this waits for the device once."""
        return self.combine(torch.stack(tuple(parts)).tolist())


@dataclass(frozen=True)
class OwnData:
    """A data set that an evaluator reads in place of the text.

    Attributes:
        n_rows: Number of rows.
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
    """Scores models. Plugins are frozen keyword-only dataclasses of hyper-parameters.

    An evaluator binds to a dense model once, and its `Proxy` scores many pruned ones. The dense
    model scores best, and one whose blocks do nothing scores worst. Evaluators with equal
    settings are equal.

    Attributes:
        experimental: Why users should prefer another evaluator; empty if there is no reason.
    """

    experimental: ClassVar[str] = ""

    @abstractmethod
    def bind(self, dense: nn.Module, tokens: Tensor, tokenizer: Any = None) -> Proxy:
        """Return a proxy for a pool of text.

        Args:
            dense: The dense model. The proxy must keep what it needs of it, since its weights
                change afterwards.
            tokens: ``(n_sequences, length)`` int64, at least 2 tokens each. Evaluators with own
                data do not read them.
            tokenizer: The model's; few evaluators need it.
        """

    def own_data(self) -> OwnData | None:
        """Describe the evaluator's own data set, or return None if it scores the text.

        A job calls this before any model is loaded, and keeps the digest. Equal settings give an
        equal result. A search scores the first rows, and the final comparison the next ones; rows
        do not begin again after the last.

        Raises:
            DataError: It cannot be read.
            ConfigError: A package that reads it is missing.
        """
        return None


def split_batches(model: nn.Module, rows: Sequence[int], length: int) -> list[Sequence[int]]:
    """Split ``rows`` into batches for one forward pass each."""
    size = compute_batch_size(next(model.parameters()).device, length)
    return [rows[i : i + size] for i in range(0, len(rows), size)]
