from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsity_search.allocators.pq_index import (
    PQIndexAllocator,
    compute_kept_fraction,
    compute_pq_index,
)
from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.registry import ALLOCATORS
from sparsity_search.testing.models import tiny_llama

NOTHING = torch.empty(0, 0)
EXPONENTS = [(0.5, 1.0), (1.0, 2.0)]


def allocated(
    subject: PrunableModel, target: float, bounds: Bounds | None = None, **settings: Any
) -> SparsityProfile:
    bounds = bounds or Bounds.of(subject.layout)
    return PQIndexAllocator(**settings).allocate(subject, NOTHING, Budget(target), bounds)


def test_one_hot_limit() -> None:
    # a one-hot vector of 16 entries, the others very small: they are zeros to the norms
    weight = torch.full((16,), 1e-30, dtype=torch.float64)
    weight[5] = 7.0
    index = compute_pq_index(weight, 0.5, 1.0)
    assert index == pytest.approx(0.9375, abs=1e-9)
    assert 16 * compute_kept_fraction(np.array([index]), 0.5, 1.0, 0.0)[0] == pytest.approx(1.0)


@pytest.mark.parametrize(("p", "q"), EXPONENTS)
@pytest.mark.parametrize("k", [1, 3, 10])
def test_equal_weights_among_very_small_ones(p: float, q: float, k: int) -> None:
    weight = torch.full((30,), 1e-30, dtype=torch.float64)
    weight[:k] = -2.5
    index = compute_pq_index(weight, p, q)
    assert index == pytest.approx(1 - 30 ** (1 / q - 1 / p) * k ** (1 / p - 1 / q), abs=1e-9)
    assert 30 * compute_kept_fraction(np.array([index]), p, q, 0.0)[0] == pytest.approx(k)


@pytest.mark.parametrize(("p", "q"), EXPONENTS)
def test_constant_vector(p: float, q: float) -> None:
    assert compute_pq_index(torch.full((9, 7), 0.3), p, q) == pytest.approx(0, abs=1e-12)
    assert compute_pq_index(torch.zeros(3, 3), p, q) == 0
    assert compute_kept_fraction(np.array([0.0]), p, q, 0.0)[0] == 1


@given(
    weight=st.lists(st.floats(-4, 4, width=32), min_size=2, max_size=30),
    exponents=st.sampled_from(EXPONENTS),
)
def test_index_is_that_of_the_norms(weight: list[float], exponents: tuple[float, float]) -> None:
    (p, q), w = exponents, np.abs(np.array([x for x in weight if abs(x) > 1e-3]))
    if not len(w):
        return
    norms = [(w**e).sum() ** (1 / e) for e in (p, q)]
    expected = 1 - len(w) ** (1 / q - 1 / p) * norms[0] / norms[1]
    found = compute_pq_index(torch.tensor(w), p, q)
    assert found == pytest.approx(expected, abs=1e-9)
    weight_ = torch.tensor(w)
    zeros = torch.zeros(5, dtype=weight_.dtype)
    for same in (weight_ * -1e-3, weight_.repeat(3), torch.cat([weight_, zeros])):
        assert compute_pq_index(same, p, q) == pytest.approx(found, abs=1e-9)


@pytest.mark.parametrize(
    ("p", "q", "expected"), [(0.5, 1.0, 0.1 / 9), (1.0, 3.0, 0.1**1.5 / 27**0.5)]
)
def test_kept_fraction_with_eta(p: float, q: float, expected: float) -> None:
    assert compute_kept_fraction(np.array([0.9]), p, q, 2.0)[0] == pytest.approx(expected)


def indices(subject: PrunableModel) -> np.ndarray:
    return np.array([compute_pq_index(v.read(), 0.5, 1.0) for v in subject.views.values()])


def uneven() -> PrunableModel:
    """A model whose units differ in their indices."""
    subject = PrunableModel(tiny_llama(layers=2))
    for i, view in enumerate(subject.views.values()):
        view.write(view.read().abs() ** (0.4 + 0.15 * i))
    return subject


@pytest.mark.parametrize("target", [0.2, 0.5])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_lost_fractions_are_proportional_for_gamma(target: float, eta: float) -> None:
    subject = uneven()
    wanted = 1 - (1 - indices(subject)) / (1 + eta) ** 2
    low = wanted * target * subject.layout.n_weights / (subject.layout.counts @ wanted)
    assert low.max() < 0.9
    np.testing.assert_allclose(allocated(subject, target, eta=eta).sparsities, low, atol=1.5 / 512)


def test_kept_fractions_are_proportional_for_eta() -> None:
    subject = uneven()
    wanted = 1 - indices(subject)
    kept = wanted * 0.3 * subject.layout.n_weights / (subject.layout.counts @ wanted)
    assert 0.1 < kept.min() < kept.max() < 1
    found = allocated(subject, 0.7, solve="eta")
    np.testing.assert_allclose(1 - found.sparsities, kept, atol=1.5 / 512)


def test_gamma_and_eta_differ() -> None:
    subject = uneven()
    assert allocated(subject, 0.5) != allocated(subject, 0.5, solve="eta")
    assert allocated(subject, 0.5) != allocated(subject, 0.5, p=1.0, q=2.0)


@pytest.mark.parametrize("solve", ["gamma", "eta"])
def test_cap_holds_until_the_budget_needs_more(solve: str) -> None:
    subject = uneven()
    found = allocated(subject, 0.6, solve=solve, cap=0.65)
    assert found.sparsities.max() == pytest.approx(0.65, abs=1 / 512)
    assert allocated(subject, 0.6, solve=solve, cap=1.0).sparsities.max() > 0.66
    assert allocated(subject, 0.9, solve=solve, cap=0.65).sparsities.min() >= 0.65 - 1 / 512


@pytest.mark.parametrize("solve", ["gamma", "eta"])
@pytest.mark.parametrize("target", [0.37, 0.95])
def test_equal_magnitudes_give_the_uniform_profile(solve: str, target: float) -> None:
    subject = PrunableModel(tiny_llama())
    for i, view in enumerate(subject.views.values()):
        view.write(view.read().sign() * (1 + i / 7))
    found = allocated(subject, target, solve=solve)
    uniform = Budget(target).uniform(subject.layout)
    np.testing.assert_allclose(found.removed, uniform.removed, atol=1)


def test_units_of_equal_weights_go_last() -> None:
    subject = uneven()
    view = subject.views[subject.layout[4].name]
    view.write(view.read().sign())
    assert allocated(subject, 0.5).removed[4] == 0


def test_only_weights_that_are_not_zero_count() -> None:
    subject = uneven()
    view = subject.views[subject.layout[6].name]
    weight = view.read().clone()
    weight[:, ::2] = 0
    view.write(weight)
    subject = PrunableModel(subject.model)
    layout = subject.layout
    assert layout.zeros[6] == weight.numel() // 2
    shares = indices(subject) * (layout.counts - layout.zeros)
    left = round(0.4 * layout.n_weights) - layout.zeros.sum()
    np.testing.assert_allclose(
        allocated(subject, 0.4).removed, layout.zeros + left * shares / shares.sum(), atol=1
    )


def test_weights_must_be_finite() -> None:
    with pytest.raises(NumericalError, match="not finite"):
        compute_pq_index(torch.tensor([1.0, float("inf")]), 0.5, 1.0)
    assert not PQIndexAllocator.needs_text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"p": 1.0}, "p and q must have 0 < p < q"),
        ({"p": 0.0}, "p and q must have 0 < p < q"),
        ({"solve": "both"}, "solve must be gamma or eta"),
        ({"eta": -0.1}, "eta must be at least 0"),
        ({"eta": 0.1, "solve": "eta"}, "eta is what is solved for"),
        ({"cap": 0.0}, r"cap must be in \(0, 1\]"),
        ({"cap": 1.1}, r"cap must be in \(0, 1\]"),
    ],
)
def test_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ALLOCATORS.create("pq_index", **settings)
