from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsity_search.allocators.dsa.expressions import REDUCTIONS, SCORES, VALUES, Expression
from sparsity_search.errors import ConfigError

Array = np.ndarray

SCORES_BY_HAND: dict[str, Callable[[Array], Array]] = {
    "identity": lambda x: x,
    "abs": np.abs,
    "log": lambda x: np.log(np.where(x > 0, x, 1)),
    "abslog": lambda x: np.log(np.where(x == 0, 1, np.abs(x))),
    "square": lambda x: x * x,
    "exp": np.exp,
    "standardise": lambda x: (x - x.mean()) / x.std(ddof=1),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "minmax": lambda x: (x - x.min()) / (x.max() - x.min()),
}
REDUCTIONS_BY_HAND: dict[str, Callable[[Array], float]] = {
    "mean": np.mean,
    "var": lambda x: float(((x - x.mean()) ** 2).sum() / (len(x) - 1)),
    "std": lambda x: math.sqrt(((x - x.mean()) ** 2).sum() / (len(x) - 1)),
    "l1": lambda x: float(np.abs(x).sum() / len(x)),
    "frobenius": lambda x: math.sqrt((x * x).sum()),
    "geometric_mean": lambda x: float(np.prod(x) ** (1 / len(x))),
    "entropy": lambda x: float(-sum(p * math.log(p) for p in x / x.sum() if p > 0)),
}
VALUES_BY_HAND: dict[str, Callable[[float], float]] = {
    "identity": lambda v: v,
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
    "asin": math.asin,
    "acos": math.acos,
    "atan": math.atan,
    "exp": math.exp,
    "log": math.log,
    "abs": abs,
    "sigmoid": lambda v: 1 / (1 + math.exp(-v)),
    "tanh": math.tanh,
    "softplus": lambda v: math.log1p(math.exp(v)),
}


def value(text: str, scores: Tensor) -> float:
    return Expression.parse(text)(scores)


@pytest.fixture
def scores() -> Tensor:
    return torch.rand(60, generator=torch.Generator().manual_seed(3)) * 2 + 0.01


def test_all_operations_are_tested() -> None:
    assert set(SCORES) == set(SCORES_BY_HAND)
    assert set(REDUCTIONS) == set(REDUCTIONS_BY_HAND)
    assert set(VALUES) == set(VALUES_BY_HAND)


@pytest.mark.parametrize("name", SCORES)
def test_operations_on_scores(name: str, scores: Tensor) -> None:
    signed = torch.cat([scores - 1, torch.zeros(4)])
    expected = SCORES_BY_HAND[name](signed.double().numpy())
    assert value(f"mean({name}(x))", signed) == pytest.approx(expected.mean(), rel=1e-5, abs=1e-6)
    assert value(f"var({name}(x))", signed) == pytest.approx(expected.var(ddof=1), rel=1e-4)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name: str, scores: Tensor) -> None:
    expected = REDUCTIONS_BY_HAND[name](scores.double().numpy())
    assert value(f"{name}(x)", scores) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", VALUES)
def test_operations_on_the_value(name: str) -> None:
    scores = torch.tensor([0.25, 0.5])
    assert value(f"{name}(mean(x))", scores) == pytest.approx(VALUES_BY_HAND[name](0.375))


def test_published_programme() -> None:
    scores = torch.tensor([0.5, 1.0, 2.0, 0.0])  # their abslog: -ln 2, 0, ln 2, 0
    variance = 2 * math.log(2) ** 2 / 3
    assert value("asin(atan(var(abslog(x))))", scores) == pytest.approx(
        math.asin(math.atan(variance))
    )


def test_order_of_application() -> None:
    scores = torch.tensor([1.0, 3.0])
    assert value("exp(sin(mean(square(minmax(x)))))", scores) == pytest.approx(
        math.exp(math.sin(0.5))
    )
    assert value("mean(minmax(square(exp(x))))", scores) == pytest.approx(0.5)
    assert value("log(mean(square(x)))", scores) == pytest.approx(math.log(5))
    assert value("mean(log(square(x)))", scores) == pytest.approx(math.log(3))


@pytest.mark.parametrize(
    ("text", "scores", "expected"),
    [
        ("asin(atan(var(x)))", [0.0, 2.0], 0.0),  # asin beyond 1: var = 2 > tan 1
        ("log(mean(x))", [-1.0, 0.5], 0.0),  # a logarithm of a negative number
        ("log(mean(x))", [0.0, 0.0], -1.0),
        ("exp(mean(x))", [1e3, 1e3], -1.0),
        ("mean(exp(x))", [1e3, 1.0], -1.0),
        ("geometric_mean(x)", [-1.0, 2.0], 0.0),
        ("entropy(x)", [0.0, 0.0], 0.0),
    ],
)
def test_not_finite(text: str, scores: list[float], expected: float) -> None:
    assert value(text, torch.tensor(scores)) == expected


def test_edges() -> None:
    same, many = torch.full((5,), 3.0), torch.full((3000,), 1e-3)
    assert value("mean(standardise(x))", same) == 0
    assert value("mean(minmax(x))", same) == 0
    assert value("geometric_mean(x)", many) == pytest.approx(1e-3)  # 1e-9000 underflows
    assert value("geometric_mean(x)", torch.tensor([0.0, 5.0])) == 0
    assert value("entropy(x)", torch.tensor([-1.0, 0.0, 1.0, 1.0])) == pytest.approx(math.log(2))


@pytest.mark.parametrize("name", SCORES)
def test_scores_are_not_modified(name: str) -> None:
    scores = torch.tensor([-1.0, 0.0, 2.0])
    value(f"mean({name}(x))", scores)
    assert scores.tolist() == [-1, 0, 2]


def test_spaces_do_not_matter() -> None:
    expected = Expression(scores=("square", "abslog"), reduction="std", values=("abs", "atan"))
    assert Expression.parse("atan(abs(std(abslog(square(x)))))") == expected
    assert Expression.parse(" atan( abs(std (abslog(\n square( x ) ) ) )) ") == expected
    assert Expression.parse("mean(x)") == Expression((), "mean", ())


@pytest.mark.parametrize(
    "text",
    [
        *("", "x)", "mean", "mean(x", "mean(x))", "mean(y)", "mean(x, x)", "mean(x)(x)"),
        *("mean(x) + 1", "mean(x);x", "2 * mean(x)", "mean(x).data", "mean(xx)", "(" * 5000),
    ],
)
def test_other_writing(text: str) -> None:
    with pytest.raises(ConfigError, match=r"looks like|unknown operation"):
        Expression.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("asin(vra(x))", "unknown operation 'vra': did you mean 'var'"),
        ("__import__(mean(x))", "unknown operation '__import__'"),
        ("torch.mean(x)", "unknown operation 'torch.mean'"),
        ("mean((x))", "unknown operation ''"),
        ("x", "exactly one has to be of mean, var"),
        ("atan(abslog(x))", "exactly one has to be of mean, var"),
        ("mean(var(x))", "exactly one has to be of mean, var"),
        ("mean(asin(x))", "asin cannot stand inside mean: "),
        ("minmax(mean(x))", "minmax cannot stand around mean: "),
    ],
)
def test_errors(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Expression.parse(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
