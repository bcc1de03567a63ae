"""Models against closed forms, and what all of them must do."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsity_search.errors import ConfigError
from sparsity_search.searchers.bases.models import (
    BoostedModel,
    ModelSettings,
    RidgeModel,
    TrainingPairs,
    centre_groups,
    fit,
)

FAST = {"trees": 8, "members": 2}
ALL = [
    ModelSettings(),
    ModelSettings(model="xgboost", **FAST),
    ModelSettings(model="xgboost", objective="rank", **FAST),
    ModelSettings(model="sklearn", **FAST),
]


def toy_pairs(n: int = 60, genes: int = 5, seed: int = 0, offset: float = 100.0) -> TrainingPairs:
    """Return scores that rise with the first level, in two groups far apart."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(-4, 5, (n, genes)).astype(float)
    groups = np.arange(n) % 2
    scores = levels[:, 0] + 0.2 * levels[:, 1] ** 2 + offset * groups + 0.1 * rng.normal(size=n)
    blocks = {"levels": levels, "means": levels.mean(axis=1, keepdims=True)}
    return TrainingPairs(blocks, scores, groups)


@settings(max_examples=15, deadline=None)
@given(n=st.integers(4, 40), genes=st.integers(1, 30), seed=st.integers(0, 99))
def test_ridge_equals_the_normal_equations(n: int, genes: int, seed: int) -> None:
    pairs = toy_pairs(n, genes, seed) if genes > 1 else toy_pairs(n, 2, seed)
    model = RidgeModel.fit(pairs)
    blocks = {**pairs.blocks, "squares": pairs.blocks["levels"] ** 2}
    columns = []
    for block in blocks.values():
        size = np.sqrt(block.var(axis=0).sum())
        columns.append(block / size if size else 0 * block)
    x = np.concatenate(columns, axis=1)
    within, y = x.copy(), pairs.scores.copy()
    for group in (0, 1):
        rows = pairs.groups == group
        within[rows] -= x[rows].mean(axis=0)
        y[rows] -= pairs.scores[rows].mean()
    inverse = np.linalg.inv(within.T @ within + np.eye(x.shape[1]) / model.ratio)
    mean, spread = model.predict(pairs.blocks)
    moved = x - x.mean(axis=0)
    assert mean == pytest.approx(moved @ inverse @ within.T @ y, rel=1e-6, abs=1e-7)
    variance = model.noise * np.einsum("ij,jk,ik->i", moved, inverse, moved)
    assert spread**2 == pytest.approx(variance, rel=1e-5, abs=1e-8 + 1e-6 * variance.max())


def test_ridge_takes_the_likeliest_ratio() -> None:
    pairs = toy_pairs(30)
    model = RidgeModel.fit(pairs)

    def likelihood(ratio: float) -> float:
        blocks = {**pairs.blocks, "squares": pairs.blocks["levels"] ** 2}
        x = np.concatenate([b / np.sqrt(b.var(axis=0).sum()) for b in blocks.values()], axis=1)
        basis = np.linalg.svd(np.equal.outer(pairs.groups, [0, 1]).astype(float))[0][:, 2:]
        x, y = basis.T @ x, basis.T @ pairs.scores  # what offsets of groups leave over
        covariance = np.eye(len(y)) + ratio * x @ x.T
        noise = y @ np.linalg.solve(covariance, y) / len(y)
        return -len(y) * np.log(noise) - np.linalg.slogdet(covariance)[1]

    ratios = 10.0 ** np.arange(-3, 5.5, 0.5)
    assert model.ratio == pytest.approx(max(ratios, key=likelihood))


@pytest.mark.parametrize("model", ALL, ids=lambda m: f"{m.model}-{m.objective}")
def test_a_model_ranks_whatever_the_offset(model: ModelSettings) -> None:
    fitted = fit(toy_pairs(), model, 0)
    levels = np.zeros((9, 5))
    levels[:, 0] = np.arange(-4, 5)
    blocks = {"levels": levels, "means": levels.mean(axis=1, keepdims=True)}
    mean, spread = fitted.predict(blocks)
    assert mean[-1] > mean[4] > mean[0]
    assert np.ptp(mean) < 30, "the offset of a group is no signal"
    assert (spread >= 0).all()
    assert spread.max() > 0


@pytest.mark.parametrize("model", ALL, ids=lambda m: f"{m.model}-{m.objective}")
def test_equal_seeds_give_equal_models(model: ModelSettings) -> None:
    pairs = toy_pairs()
    first, second = (fit(pairs, model, 3).predict(pairs.blocks) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("model", ALL[1:], ids=lambda m: f"{m.model}-{m.objective}")
def test_seeds_of_trees_differ(model: ModelSettings) -> None:
    pairs = toy_pairs()
    first, second = (fit(pairs, model, seed).predict(pairs.blocks)[0] for seed in (0, 1))
    assert not np.array_equal(first, second)


def test_rank_never_compares_groups() -> None:
    """Of a small group the best comes eighth or so: beside a large one it would look bad."""
    rng = np.random.default_rng(0)
    levels = rng.uniform(-4, 4, (80, 2))
    groups = (levels[:, 1] > 3).astype(int)
    pairs = TrainingPairs({"levels": levels}, levels[:, 0] - 1000.0 * groups, groups)
    model = ModelSettings(model="xgboost", objective="rank", members=1, trees=30)
    at = {"levels": np.array([[1.0, -3.9], [-1.0, 3.9]])}
    worse, better = fit(pairs, model, 0).predict(at)[0]
    assert worse > better


@pytest.mark.parametrize("objective", ["rank", "regression"])
def test_trees_survive_their_json(objective: str) -> None:
    pairs = toy_pairs()
    fitted = fit(pairs, ModelSettings(model="xgboost", objective=objective, **FAST), 0)
    assert isinstance(fitted, BoostedModel)
    stored = json.loads(json.dumps(fitted.to_json()))
    loaded = BoostedModel.from_json(stored, rank=objective == "rank")
    np.testing.assert_array_equal(loaded.predict(pairs.blocks), fitted.predict(pairs.blocks))


def test_importance_is_of_the_feature_that_matters() -> None:
    fitted = fit(toy_pairs(200), ModelSettings(model="xgboost", **FAST), 0)
    assert isinstance(fitted, BoostedModel)
    found = fitted.importance(6)
    assert found.argmax() == 0
    assert found[0] > 2 * found[2:5].max()


def test_constant_scores_and_features() -> None:
    pairs = TrainingPairs({"levels": np.zeros((4, 3))}, np.ones(4), np.zeros(4, dtype=int))
    mean, spread = RidgeModel.fit(pairs).predict({"levels": np.ones((2, 3))})
    assert mean.tolist() == [0, 0]
    assert np.isfinite(spread).all()


def test_centred_by_group() -> None:
    x = np.array([[1.0], [10.0], [3.0], [30.0]])
    assert centre_groups(x, np.array([7, 2, 7, 2]))[:, 0].tolist() == [-1.0, -10.0, 1.0, 10.0]


@pytest.mark.parametrize(
    "bad",
    [{"model": "cnn"}, {"objective": "mse"}, {"members": 0}, {"trees": 0}, {"depth": 0},
     {"rate": 0.0}, {"rate": 1.5}],
)  # fmt: skip
def test_bad_settings(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        ModelSettings(**bad)
