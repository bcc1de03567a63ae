"""The base class of evaluators, and a plugin that a stranger would write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsity_search.interfaces.evaluator import Evaluator, Proxy, split_batches
from sparsity_search.models.running.head import compute_last_hidden, compute_logits
from sparsity_search.testing.evaluator import (
    LENGTH,
    N_ROWS,
    EvaluatorContract,
    TextContract,
    sample_text,
    scale_model,
)
from sparsity_search.trials.history import Score


@dataclass(frozen=True, kw_only=True)
class DisagreementEvaluator(Evaluator):
    """Share of positions at which the pruned model predicts another token than the dense one."""

    def bind(self, dense: nn.Module, tokens: Tensor, tokenizer: Any = None) -> Proxy:
        return DisagreementProxy(tokens, predict(dense, tokens))


@dataclass(frozen=True, eq=False)
class DisagreementProxy(Proxy):
    tokens: Tensor
    expected: Tensor

    def score(self, model: nn.Module, rows: Sequence[int]) -> Score:
        top = predict(model, self.tokens[list(rows)])
        differs = (top != self.expected[list(rows)]) + 0 * top
        return self.read_back(list(differs.mean(-1)))


@torch.inference_mode()
def predict(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the likeliest next tokens, ``(rows, length)`` float32; NaN of broken logits."""
    predicted = []
    for batch in split_batches(model, range(len(tokens)), tokens.shape[1]):
        scores = compute_logits(model, compute_last_hidden(model, tokens[list(batch)])).float()
        predicted.append(scores.argmax(-1) + 0 * scores.sum(-1))
    return torch.cat(predicted)


class TestDisagreement(EvaluatorContract):
    @pytest.fixture
    def evaluator(self) -> Evaluator:
        return DisagreementEvaluator()


class TestDisagreementOfText(TextContract):
    @pytest.fixture
    def evaluator(self) -> Evaluator:
        return DisagreementEvaluator()


class Faulty(Proxy):
    """Scores as `DisagreementEvaluator` does, but on other rows than it is asked for."""

    def __init__(self, proxy: Proxy, change: Callable[[Sequence[int]], list[int]]) -> None:
        self._proxy, self._change = proxy, change

    def score(self, model: nn.Module, rows: Sequence[int]) -> Score:
        return self._proxy.score(model, self._change(rows))


@dataclass(frozen=True)
class FaultyEvaluator(Evaluator):
    change: Callable[[Sequence[int]], list[int]]

    def bind(self, dense: nn.Module, tokens: Tensor, tokenizer: Any = None) -> Proxy:
        return Faulty(DisagreementEvaluator().bind(dense, tokens), self.change)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda rows: [0] * len(rows), id="always the first"),
        pytest.param(lambda rows: list(range(len(rows))), id="counted anew"),
        pytest.param(sorted, id="sorted"),
        pytest.param(lambda rows: rows[:1], id="one part"),
    ],
)
def test_ignoring_rows_breaks_the_contract(change: Callable[[Sequence[int]], list[int]]) -> None:
    dense = scale_model(1.0)
    tokens = sample_text(dense, N_ROWS, LENGTH)
    with pytest.raises(AssertionError):
        EvaluatorContract().test_one_part_for_each_row(FaultyEvaluator(change), dense, tokens)


def test_parts_are_combined_by_their_mean() -> None:
    proxy = Faulty(DisagreementEvaluator().bind(scale_model(1.0), torch.zeros(1, 4).long()), list)
    assert proxy.combine([1.0, 2.0]) == Score(1.5, (1.0, 2.0))
    assert proxy.read_back([torch.tensor(1.0), torch.tensor(2.0)]) == Score(1.5, (1.0, 2.0))
