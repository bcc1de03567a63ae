from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsity_search.allocators.besa.differentiable import (
    LearnedMask,
    build_candidate_rates,
    build_keep_mask,
    compute_initial_logits,
    compute_keep_probability,
    compute_ranks,
    compute_thresholds,
)
from sparsity_search.allocators.besa.tradeoffs import balance_sparsities, shift_sparsities


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def learned(
    logits: Tensor, columns: int, rows: int | None = None, step: float = 0.1
) -> LearnedMask:
    places = drawn(rows or len(logits), columns, seed=1).argsort(dim=1).argsort(dim=1)
    return LearnedMask(places, logits, build_candidate_rates(step))


def test_candidates() -> None:
    found = build_candidate_rates(0.01)
    np.testing.assert_allclose(found, np.linspace(0, 1, 101), atol=1e-12)
    assert build_candidate_rates(1).tolist() == [0, 1]
    np.testing.assert_allclose(build_candidate_rates(0.3), [0, 0.1, 0.4, 0.7, 1], atol=1e-12)
    assert compute_thresholds(build_candidate_rates(0.1), 30) == list(range(0, 31, 3))
    assert compute_thresholds(build_candidate_rates(0.25), 10) == [0, 2, 5, 7, 10]


@given(
    target=st.floats(0.02, 0.98),
    step=st.sampled_from([0.01, 0.07, 0.25]),
    width=st.sampled_from([0.03, 0.2, math.inf]),
)
def test_starts_at_the_target(target: float, step: float, width: float) -> None:
    rates = build_candidate_rates(step)
    logits = compute_initial_logits(rates, target, width)
    weights = logits[None].double().softmax(dim=1)
    assert float(weights.sum()) == pytest.approx(1)
    assert float(weights @ rates) == pytest.approx(target, abs=1e-6)


def test_start_is_flat_or_a_peak() -> None:
    rates = build_candidate_rates(0.01)
    assert compute_initial_logits(rates, 0.5).tolist() == [0] * 101  # as published
    flat = compute_initial_logits(rates, 0.7)
    np.testing.assert_allclose(flat.diff().diff(), 0, atol=1e-5)  # a tilt, nothing else
    weights = compute_initial_logits(rates, 0.4, 0.05).double().softmax(0)
    assert float(weights @ (rates - 0.4).square()) == pytest.approx(0.05**2, rel=1e-3)


@pytest.mark.parametrize(("columns", "step"), [(7, 0.1), (24, 0.1), (50, 0.3), (150, 0.01)])
def test_keep_probability_by_definition(columns: int, step: float) -> None:
    rates = build_candidate_rates(step)
    weights = drawn(3, len(rates)).softmax(dim=1)
    found = compute_keep_probability(weights, compute_thresholds(rates, columns))
    for group in range(3):
        for rank in range(columns):
            pruned = sum(
                float(w)
                for w, p in zip(weights[group], rates.tolist(), strict=True)
                if math.floor(columns * p + 1e-9) > rank
            )
            assert float(found[group, rank]) == pytest.approx(1 - pruned)
    assert (found.diff(dim=1) >= -1e-12).all()
    assert found.min() >= 0
    assert found.max() <= 1 + 1e-12
    # what is lost in rounding each candidate down is less than one weight
    mass, wanted = (1 - found).sum(1), columns * (weights @ rates)
    assert (mass <= wanted + 1e-9).all()
    assert (mass > wanted - 1).all()


def test_gradient_of_the_soft_mask() -> None:
    rates = build_candidate_rates(0.1)
    upstream, logits = drawn(4, 13, seed=2), drawn(4, 11).requires_grad_()

    def loss(x: Tensor) -> Tensor:
        return (
            compute_keep_probability(x.softmax(dim=1), compute_thresholds(rates, 13)) * upstream
        ).sum()

    assert torch.autograd.gradcheck(loss, (logits,))
    found = torch.autograd.grad(loss(logits), logits)[0]
    shift = torch.zeros_like(logits)
    shift[2, 5] = 1e-6
    slope = (loss(logits + shift) - loss(logits - shift)) / 2e-6
    assert float(found[2, 5]) == pytest.approx(float(slope.detach()), rel=1e-5)


@pytest.mark.parametrize("groups", [1, 5])
def test_mask_goes_straight_through(groups: int) -> None:
    logits = drawn(groups, 11).float().requires_grad_()
    mask = learned(logits, columns=23, rows=5)
    found = mask.mask()
    assert set(found.detach().unique().tolist()) == {0.0, 1.0}
    rate = mask.sparsity().detach().double().expand(5)
    assert (found == 0).sum(1).tolist() == [math.floor(23 * s) for s in rate.tolist()]
    assert (found.detach() == (mask.ranks >= (23 * rate).floor()[:, None])).all()
    upstream = drawn(5, 23, seed=3).float()
    gradient = torch.autograd.grad((found * upstream).sum(), logits)[0]
    # dL/dβ_d = -Σ of dL/dmask over the ranks below ⌊columns · p_d⌋; then the softmax
    by_rank = torch.zeros_like(upstream).scatter_(1, mask.ranks, upstream)
    prefixes = torch.stack(
        [-by_rank[:, :n].sum(1) for n in compute_thresholds(mask.rates, 23)], dim=1
    )
    if groups == 1:
        prefixes = prefixes.sum(0, keepdim=True)
    weights = logits.detach().softmax(1)
    expected = weights * (prefixes - (weights * prefixes).sum(1, keepdim=True))
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


@pytest.mark.parametrize("columns", [10, 4096, 11008])
@pytest.mark.parametrize("rate", [0.3, 0.7, 0.9])
def test_rounding_costs_no_weight(columns: int, rate: float) -> None:
    rates = build_candidate_rates(0.1)
    logits = torch.where(rates.sub(rate).abs() < 1e-6, 50.0, -50.0)[None].float()
    found = LearnedMask(torch.arange(columns)[None], logits, rates).mask()
    assert int((found == 0).sum()) == math.floor(columns * rate + 1e-9)


def test_ranks() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0, 1.0], [0.0, 0.0, 5.0, 4.0]])
    first = torch.tensor([[True, False, False, False], [False, True, False, False]])
    assert compute_ranks(scores, first).tolist() == [[0, 1, 3, 2], [1, 0, 3, 2]]
    rows = build_keep_mask(
        compute_ranks(scores, first), torch.tensor([0.5, 0.3], dtype=torch.float64)
    )
    assert rows.tolist() == [[False, False, True, True], [True, False, True, True]]


@given(
    values=st.lists(st.floats(-1, 2), min_size=1, max_size=6),
    target=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_shifted(values: list[float], target: float, seed: int) -> None:
    source = np.random.default_rng(seed)
    sizes = source.integers(1, 50, len(values)).astype(float)
    lower, upper = 0.3 * source.random(len(values)), 0.6 + 0.4 * source.random(len(values))
    found = shift_sparsities(np.array(values), sizes, target, lower, upper)
    assert (found >= lower).all()
    assert (found <= upper).all()
    reached = np.clip(target, np.average(lower, weights=sizes), np.average(upper, weights=sizes))
    assert np.average(found, weights=sizes) == pytest.approx(reached, abs=1e-9)
    moves = (found - values)[(found > lower) & (found < upper)]  # one constant where free
    assert np.ptp(moves) < 1e-9 if len(moves) else True


LEVELS = np.linspace(0.5, 0.9, 5)


def test_balanced_has_equal_marginal_errors() -> None:
    sizes, factors = np.array([100.0, 300.0, 200.0]), np.array([1.0, 2.6, 2.1])
    curves = [a * LEVELS**2 for a in factors]
    found = balance_sparsities([LEVELS] * 3, curves, sizes, 0.7)
    # 2 a s / n = λ: s is proportional to n / a, and Σ n s = 0.7 Σ n
    exact = sizes / factors
    exact *= 0.7 * sizes.sum() / (sizes @ exact)
    assert LEVELS[1] < exact.min() < exact.max() < LEVELS[3]  # where differences are exact
    np.testing.assert_allclose(found, exact, atol=1e-5)


@pytest.mark.parametrize("target", [0.55, 0.7, 0.83])
def test_balanced_is_the_best(target: float) -> None:
    sizes = np.array([2.0, 1.0, 3.0])
    functions = [lambda s: s**6, lambda s: 3 * s**4, lambda s: 0.5 * s**3]
    found = balance_sparsities([LEVELS] * 3, [f(LEVELS) for f in functions], sizes, target)
    assert sizes @ found == pytest.approx(target * 6)
    grid = np.linspace(0.5, 0.9, 161)
    a, b = np.meshgrid(grid, grid)
    c = (target * 6 - 2 * a - b) / 3
    errors = np.where((c >= 0.5) & (c <= 0.9), a**6 + 3 * b**4 + 0.5 * c**3, np.inf)
    got = sum(f(s) for f, s in zip(functions, found, strict=True))
    uniform = sum(f(target) for f in functions)
    assert got < uniform
    assert got - errors.min() < 0.1 * (uniform - errors.min())


@pytest.mark.parametrize("slope", [0.0, 2.0, -1.0])
def test_balanced_of_equal_curves_is_uniform(slope: float) -> None:
    sizes = np.array([5.0, 5.0, 5.0])
    found = balance_sparsities([LEVELS] * 3, [slope * LEVELS] * 3, sizes, 0.61)
    np.testing.assert_allclose(found, 0.61, atol=1e-9)


def test_balanced_within_its_levels() -> None:
    levels = [np.array([0.3]), LEVELS, LEVELS]
    errors = [np.zeros(1), 10 * LEVELS**2, LEVELS * 0]
    found = balance_sparsities(levels, errors, np.ones(3), 0.5)
    np.testing.assert_allclose(found, [0.3, 0.5, 0.7], atol=1e-9)
    found = balance_sparsities(levels, errors, np.ones(3), 0.9)
    np.testing.assert_allclose(found, [0.3, 0.9, 0.9], atol=1e-9)
    # an error that falls on the way is no reason to go further
    bent = [np.array([0.0, 1.0, 0.5, 0.5, 2.0]), LEVELS**2]
    assert balance_sparsities([LEVELS] * 2, bent, np.ones(2), 0.7).sum() == pytest.approx(1.4)
