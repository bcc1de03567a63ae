from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from torch import Tensor

import sparsity_search.allocators.dsa as module
from sparsity_search.allocators.dsa import DSAAllocator
from sparsity_search.allocators.dsa.expressions import Expression
from sparsity_search.errors import ConfigError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.registry import ALLOCATORS
from sparsity_search.testing.models import tiny_llama
from tests.allocators.test_owl import ROUNDING, assert_near, block_scores, by_block


def allocated(
    subject: PrunableModel, tokens: Tensor, target: float = 0.7, **settings: Any
) -> SparsityProfile:
    return DSAAllocator(**settings).allocate(
        subject, tokens, Budget(target), Bounds.of(subject.layout)
    )


def expected(subject: PrunableModel, values: list[float], target: float) -> np.ndarray:
    """Return DSA's map: to [0, 1], turned round, to densities; centred by parameters."""
    found = np.array([values[unit.block] for unit in subject.layout])
    density = 0.16 * (1 - (found - found.min()) / (found.max() - found.min()))
    sizes = np.array([unit.size for unit in subject.layout])
    return np.asarray(target - density + sizes @ density / sizes.sum())


@pytest.mark.parametrize("exclude", [None, r"layers\.1\.mlp"])
@pytest.mark.parametrize("units", ["weights", "width"])
def test_published_programme(units: str, exclude: str | None, tiny_tokens: Tensor) -> None:
    if units == "width":
        exclude = exclude and exclude + "$"
    subject = PrunableModel(tiny_llama(layers=4), exclude, units)
    values = []
    for scores in block_scores(subject, tiny_tokens):
        variance = np.log(scores.numpy()).var(ddof=1)
        values.append(math.asin(math.atan(variance)) if variance <= math.tan(1) else 0.0)
    assert len(set(values)) > 1
    found = allocated(subject, tiny_tokens)
    assert_near(found, expected(subject, values, 0.7))


def test_other_expressions(tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama(layers=3))
    values = [float(np.exp(-s.numpy().mean())) for s in block_scores(subject, tiny_tokens)]
    mean = allocated(subject, tiny_tokens, 0.4, expression="mean(x)")
    assert np.argsort(by_block(mean)).tolist() == np.argsort(values).tolist()[::-1]
    # 1 - sigmoid(v) has no name, but cos falls too
    falling = allocated(subject, tiny_tokens, 0.4, expression="cos(tanh(mean(x)))")
    assert np.argsort(by_block(falling)).tolist() == np.argsort(values).tolist()


def test_a_higher_value_is_pruned_more(
    monkeypatch: pytest.MonkeyPatch, tiny_tokens: Tensor
) -> None:
    values = iter([2.0, -2.0, 0.0, 6.0])
    monkeypatch.setattr(Expression, "__call__", lambda *_: next(values))
    found = by_block(allocated(PrunableModel(tiny_llama(layers=4)), tiny_tokens, spread=0.1))
    offsets = np.array([0.1, 0.0, 0.05, 0.2])
    np.testing.assert_allclose(found, 0.7 + offsets - offsets.mean(), atol=ROUNDING)


def test_permuted_values_permute_the_blocks(
    monkeypatch: pytest.MonkeyPatch, tiny_tokens: Tensor
) -> None:
    def of(values: list[float]) -> np.ndarray:
        left = iter(values)
        monkeypatch.setattr(Expression, "__call__", lambda *_: next(left))
        return by_block(allocated(PrunableModel(tiny_llama(layers=3)), tiny_tokens, 0.3))

    np.testing.assert_allclose(of([0.1, 0.5, 0.3])[[2, 0, 1]], of([0.3, 0.1, 0.5]), atol=1e-3)


@pytest.mark.parametrize("expression", ["log(log(sigmoid(mean(x))))", "exp(exp(mean(exp(x))))"])
def test_undefined_everywhere_gives_the_uniform_profile(
    monkeypatch: pytest.MonkeyPatch, tiny_tokens: Tensor, expression: str
) -> None:
    subject = PrunableModel(tiny_llama(layers=3))
    original = module.measure_scores
    values = []

    def spy(*args: Any) -> np.ndarray:
        values.append(original(*args))
        return np.asarray(values[-1])

    monkeypatch.setattr(module, "measure_scores", spy)
    for view in subject.views.values():  # so that `exp` leaves float64
        view.write(view.read() * 10)
    found = allocated(subject, tiny_tokens, 0.37, expression=expression)
    assert set(values[0]) <= {0.0, -1.0}
    assert found == Budget(0.37).uniform(subject.layout)


def test_undefined_in_one_block_counts_as_zero(tiny_tokens: Tensor) -> None:
    model = tiny_llama(layers=3)
    model.model.layers[2].mlp.down_proj.weight[:, :32] *= 1e-4  # its variance exceeds tan 1
    subject = PrunableModel(model)
    scores = block_scores(subject, tiny_tokens)
    variances = [np.log(s.numpy()).var(ddof=1) for s in scores]
    assert max(variances[:2]) < math.tan(1) < variances[2]
    found = by_block(allocated(subject, tiny_tokens))
    assert np.argmin(found) == 2
    assert found.max() - found.min() == pytest.approx(0.16, abs=2 * ROUNDING)


def test_zero_spread_gives_the_uniform_profile(
    tiny_subject: PrunableModel, tiny_tokens: Tensor
) -> None:
    found = allocated(tiny_subject, tiny_tokens, 0.6, spread=0)
    assert found == Budget(0.6).uniform(tiny_subject.layout)


def test_defaults() -> None:
    assert DSAAllocator() == DSAAllocator(expression="asin(atan(var(abslog(x))))", spread=0.08)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"spread": 1.5}, r"spread must lie in \[0, 1\), not 1.5"),
        ({"expression": "atan(vra(x))"}, "unknown operation 'vra': did you mean 'var'"),
        ({"expression": "mean(x"}, "looks like"),
    ],
)
def test_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ALLOCATORS.create("dsa", **settings)
