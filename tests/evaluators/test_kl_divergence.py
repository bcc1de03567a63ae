from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from sparsity_search.errors import ConfigError
from sparsity_search.evaluators.kl_divergence import KLDivergenceEvaluator
from sparsity_search.models.running import head
from sparsity_search.registry import EVALUATORS
from sparsity_search.testing.evaluator import draw_random_tokens, scale_model
from sparsity_search.testing.models import VOCABULARY, tiny_llama
from tests.helpers.families import FAMILIES

TOKENS = draw_random_tokens(6, 24)


def directly(dense: nn.Module, model: nn.Module, tokens: Tensor) -> list[float]:
    """Return ``Σ p (log p − log q)`` of each row, mean over positions, in float64."""
    with torch.inference_mode():
        p, q = (m(input_ids=tokens).logits.double().log_softmax(-1) for m in (dense, model))
    return (p.exp() * (p - q)).sum(-1).mean(-1).tolist()


@pytest.mark.parametrize("factor", [0.9, 0.0])
@pytest.mark.parametrize(("chunk", "tile"), [(1, 30), (7, 7), (24, 2048), (1000, 30)])
def test_is_the_divergence_of_full_softmaxes(
    factor: float, chunk: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "TILE", tile)
    dense, model = tiny_llama(), scale_model(factor)
    expected = directly(dense, model, TOKENS)
    score = KLDivergenceEvaluator(chunk=chunk).bind(dense, TOKENS).score(model, range(6))
    assert score.parts == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert score.value == pytest.approx(sum(expected) / 6, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("positions", [1, 7, 99])
def test_positions_are_a_fair_sample(positions: int) -> None:
    dense, model = tiny_llama(), scale_model(0.0)
    tokens = draw_random_tokens(80, 24)
    expected = torch.tensor(directly(dense, model, tokens))
    proxy = KLDivergenceEvaluator(positions=positions, chunk=5).bind(dense, tokens)
    found = torch.tensor(proxy.score(model, range(80)).parts)
    deviation = (found - expected).std()
    if positions >= 24:
        assert_close(found, expected, rtol=1e-4, atol=1e-6)
    else:
        assert abs(found.mean() - expected.mean()) < 4 * deviation / 80**0.5
        assert deviation > 1e-3
    assert proxy.score(model, [3, 5]).parts == pytest.approx(found[[3, 5]].tolist(), rel=1e-5)


def test_the_head_runs_on_the_positions_that_count() -> None:
    dense, seen = tiny_llama(), []
    proxy = KLDivergenceEvaluator(positions=5).bind(dense, TOKENS)
    dense.lm_head.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[:-1]))
    proxy.score(dense, [0, 1])
    assert [tuple(shape) for shape in seen] == [(5,)] * 4


def test_capped_logits() -> None:
    dense, model = FAMILIES["gemma3"](), FAMILIES["gemma3"]()
    model.model.layers[1].mlp.up_proj.weight.zero_()
    expected = directly(dense, model, TOKENS)
    assert expected[0] > 1e-4
    parts = KLDivergenceEvaluator().bind(dense, TOKENS).score(model, range(6)).parts
    assert parts == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_of_the_dense_model_is_zero() -> None:
    dense = tiny_llama()
    score = KLDivergenceEvaluator().bind(dense, TOKENS).score(dense, range(6))
    assert score.parts == pytest.approx([0.0] * 6, abs=1e-6)


def test_teacher_and_student_are_not_swapped() -> None:
    dense, model = tiny_llama(), scale_model(0.0)
    forward, backward = directly(dense, model, TOKENS), directly(model, dense, TOKENS)
    assert abs(forward[0] - backward[0]) > 0.02
    found = KLDivergenceEvaluator().bind(dense, TOKENS).score(model, range(6))
    assert found.parts == pytest.approx(forward, rel=1e-4)


#: Teacher probabilities of one chunk of 8 positions.
CHUNK_BYTES = 8 * VOCABULARY * 4


@pytest.mark.parametrize("n_cached", [0, 3, 1000])
@pytest.mark.parametrize("tile", [7, 2048])
def test_the_cache_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, n_cached: int, tile: int
) -> None:
    monkeypatch.setattr(head, "TILE", tile)
    dense, model = tiny_llama(), scale_model(0.5)
    expected = KLDivergenceEvaluator(chunk=8).bind(dense, TOKENS).score(model, range(6))
    proxy = KLDivergenceEvaluator(chunk=8, cache_mib=0).bind(dense, TOKENS)
    monkeypatch.setattr(proxy._divergence, "_free", n_cached * CHUNK_BYTES)
    for _ in range(3):
        assert proxy.score(model, range(6)) == expected
    assert len(proxy._divergence._cache) == min(n_cached, 6 * 3)


def test_the_teacher_is_cached_once() -> None:
    dense, calls = tiny_llama(), []
    proxy = KLDivergenceEvaluator(chunk=8).bind(dense, TOKENS)
    dense.lm_head.register_forward_hook(lambda *_: calls.append(1))
    proxy.score(dense, [0, 1])
    assert len(calls) == 2 * 2 * 3  # teacher and student, two rows of three chunks
    calls.clear()
    proxy.score(dense, [1, 0])
    assert len(calls) == 2 * 3


@pytest.mark.parametrize("settings", [{"cache_mib": -1}, {"chunk": 0}])
def test_settings(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="must not be negative"):
        EVALUATORS.create("kl_divergence", **settings)
