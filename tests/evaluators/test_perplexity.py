from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from sparsity_search.errors import ConfigError
from sparsity_search.evaluators.perplexity import PerplexityEvaluator
from sparsity_search.registry import EVALUATORS
from sparsity_search.testing.evaluator import draw_random_tokens, scale_model
from sparsity_search.testing.models import tiny_llama
from tests.helpers.families import FAMILIES

TOKENS = draw_random_tokens(6, 24)


def naively(model: nn.Module, tokens: Tensor) -> list[float]:
    """Return the mean negative log-likelihood of each row, in float64."""
    with torch.inference_mode():
        log_p = model(input_ids=tokens).logits.double().log_softmax(-1)
    likely = log_p[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    return (-likely.mean(-1)).tolist()


@pytest.mark.parametrize("chunk", [1, 5, 23, 24, 1000])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_is_the_naive_one(family: str, chunk: int) -> None:
    model = FAMILIES[family]()
    expected = naively(model, TOKENS)
    score = PerplexityEvaluator(chunk=chunk).bind(model, TOKENS).score(model, range(6))
    assert score.parts == pytest.approx(expected, rel=1e-5)
    assert score.value == pytest.approx(math.exp(sum(expected) / 6), rel=1e-5)


def test_is_of_the_model_scored_not_of_the_bound_one() -> None:
    model = scale_model(0.5)
    score = PerplexityEvaluator().bind(tiny_llama(), TOKENS).score(model, [3])
    assert score.parts == pytest.approx(naively(model, TOKENS)[3:4], rel=1e-5)


def test_is_the_loss_of_transformers() -> None:
    model = tiny_llama()
    with torch.inference_mode():
        loss = float(model(input_ids=TOKENS, labels=TOKENS).loss)
    score = PerplexityEvaluator().bind(model, TOKENS).score(model, range(6))
    assert math.log(score.value) == pytest.approx(loss, rel=1e-5)


def test_a_huge_loss_is_infinite_not_an_error() -> None:
    model = tiny_llama()
    proxy = PerplexityEvaluator().bind(model, TOKENS)
    model.lm_head.weight *= 1e4
    score = proxy.score(model, range(6))
    assert score.value == math.inf
    assert all(700 < part < math.inf for part in score.parts)


def test_settings() -> None:
    with pytest.raises(ConfigError, match="chunk must be at least 1, not 0"):
        EVALUATORS.create("perplexity", chunk=0)
