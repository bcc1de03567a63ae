from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from sparsity_search.pruners.bases.columns import (
    ColumnFit,
    EliminationSettings,
    compute_refits,
    eliminate,
    find_order,
    is_nested,
    list_columns,
)
from sparsity_search.testing.pruner import draw_correlated_inputs, draw_gaussian

ROWS = 6


def greedy_order(weight: Tensor, hessian: Tensor, count: int, how: EliminationSettings) -> Tensor:
    return eliminate(weight, hessian, count, how).order


def problem(count: int, inner: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight and a damped Hessian, both in float64."""
    inputs = draw_correlated_inputs(300, count * inner, seed=seed + 50).double()
    hessian = inputs.T @ inputs / len(inputs)
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian))
    return draw_gaussian(ROWS, count * inner, seed=seed).double(), hessian


def error(change: Tensor, hessian: Tensor) -> float:
    return float((change @ hessian * change).sum())


def oracle(weight: Tensor, hessian: Tensor, removed: Tensor) -> Tensor:
    """The best weights without some columns: H_SS w_S = (H w)_S."""
    kept, best = ~removed, torch.zeros_like(weight)
    if kept.any():
        best[:, kept] = torch.linalg.solve(hessian[kept][:, kept], hessian[kept] @ weight.T).T
    return best


def without(groups: Tensor, count: int, inner: int) -> Tensor:
    """A mask of the columns of some groups."""
    return torch.isin(torch.arange(count), groups).repeat_interleave(inner)


def brute_greedy(weight: Tensor, hessian: Tensor, count: int) -> list[int]:
    """Remove the group without which the least-squares error is least; no inverse, no update."""
    inner, order = weight.shape[1] // count, list[int]()
    while len(order) < count:
        errors = {}
        for group in set(range(count)) - set(order):
            removed = without(torch.tensor([*order, group]), count, inner)
            errors[group] = error(oracle(weight, hessian, removed) - weight, hessian)
        order.append(min(errors, key=errors.__getitem__))
    return order


def eager_greedy(
    weight: Tensor, hessian: Tensor, count: int, how: EliminationSettings
) -> list[int]:
    """The method as published: scores of current weights, then weights and inverse updated."""
    inner, dense = weight.shape[1] // count, hessian @ weight.T
    current, inverse = weight.clone(), torch.linalg.inv(hessian)
    order, left = list[int](), list(range(count))
    while left:
        scores = []
        for group in left:
            g = list_columns(torch.tensor([group]), inner)
            block, w = torch.linalg.inv(inverse[g][:, g]), current[:, g]
            score = (w @ block * w).sum()
            scores.append(score / 2 + (w * dense[g].T).sum() if how.linear_term else score)
        lowest = [left[i] for i in torch.stack(scores).argsort()[: how.per_step]]
        p = list_columns(torch.tensor(lowest), inner)
        step = torch.linalg.solve(inverse[p][:, p], inverse[p])
        current = current - current[:, p] @ step
        inverse = inverse - inverse[:, p] @ step
        left = [group for group in left if group not in lowest]
        order += lowest
    return order


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("count", "inner"), [(12, 1), (6, 3), (1, 4)])
def test_greedy_removes_what_costs_least(count: int, inner: int, seed: int) -> None:
    weight, hessian = problem(count, inner, seed)
    found = greedy_order(weight, hessian, count, EliminationSettings())
    assert found.tolist() == brute_greedy(weight, hessian, count)


@pytest.mark.parametrize("linear_term", [False, True])
@pytest.mark.parametrize("per_step", [1, 2, 5])
@pytest.mark.parametrize(("count", "inner"), [(40, 1), (7, 4)])
def test_greedy_equals_the_published_updates(
    count: int, inner: int, per_step: int, linear_term: bool
) -> None:
    weight, hessian = problem(count, inner)
    how = EliminationSettings(per_step=per_step, linear_term=linear_term)
    found = greedy_order(weight, hessian, count, how)
    assert found.tolist() == eager_greedy(weight, hessian, count, how)


def test_the_linear_term_matters() -> None:
    weight, hessian = problem(40, 1)
    plain, linear = (
        greedy_order(weight, hessian, 40, EliminationSettings(linear_term=on)).tolist()
        for on in (False, True)
    )
    assert plain != linear


@pytest.mark.parametrize("panel", [1, 7, 1000])
@pytest.mark.parametrize(("count", "inner"), [(150, 1), (30, 4)])
def test_panels_only_save_time(
    count: int, inner: int, panel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, hessian = problem(count, inner)
    how = EliminationSettings(linear_term=True, per_step=3)
    usual = greedy_order(weight, hessian, count, how)
    monkeypatch.setattr("sparsity_search.pruners.bases.columns._PANEL", panel)
    assert torch.equal(greedy_order(weight, hessian, count, how), usual)
    assert torch.equal(usual.sort().values, torch.arange(count))


def test_the_order_does_not_depend_on_rows_or_scale() -> None:
    weight, hessian = problem(30, 2)
    usual = greedy_order(weight, hessian, 30, EliminationSettings())
    rotation = torch.linalg.qr(draw_gaussian(ROWS, ROWS).double()).Q
    for other in (
        (rotation @ weight, hessian),
        (weight * 1e-12, hessian),
        (weight, hessian * 1e9),
    ):
        assert torch.equal(greedy_order(*other, 30, EliminationSettings()), usual)


def test_groups_of_zeros_go_first_and_change_nothing() -> None:
    weight, hessian = problem(12, 2)
    for group in (3, 8):
        weight[:, list_columns(torch.tensor([group]), 2)] = 0
    for linear_term in (False, True):
        how = EliminationSettings(linear_term=linear_term)
        found = greedy_order(weight, hessian, 12, how).tolist()
        assert set(found[:2]) == {3, 8}
        others = torch.tensor([group for group in range(12) if group not in (3, 8)])
        live = list_columns(others, 2)
        alone = greedy_order(weight[:, live], hessian[live][:, live], 10, how)
        assert found[2:] == others[alone].tolist()


def test_the_seed_orders_equal_groups() -> None:
    weight, hessian = torch.ones(3, 8).double(), torch.eye(8).double()
    orders = {
        tuple(greedy_order(weight, hessian, 8, EliminationSettings(seed=s)).tolist())
        for s in range(5)
    }
    assert len(orders) == 5
    zeros = weight * 0
    orders = {
        tuple(greedy_order(zeros, hessian, 8, EliminationSettings(seed=s)).tolist())
        for s in range(5)
    }
    assert len(orders) == 5
    orders = {
        tuple(greedy_order(*problem(8, 1), 8, EliminationSettings(seed=s)).tolist())
        for s in range(5)
    }
    assert len(orders) == 1


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 7), st.integers(1, 4), st.integers(0, 99))
def test_one_factor_gives_the_oracle_at_every_count(count: int, inner: int, seed: int) -> None:
    weight, hessian = problem(count, inner, seed)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    fit = ColumnFit.of(weight, hessian, order)
    errors = fit.errors()
    assert errors.shape == (count + 1,)
    assert errors[0] == 0
    assert (errors.diff() >= 0).all()
    for n in range(count + 1):
        best = oracle(weight, hessian, without(order[:n], count, inner))
        assert_close(fit.at(n), best, rtol=1e-8, atol=1e-8)
        assert float(errors[n]) == pytest.approx(error(best - weight, hessian), rel=1e-6, abs=1e-9)


def test_no_removal_and_full_removal() -> None:
    weight, hessian = problem(5, 2)
    fit = ColumnFit.of(weight, hessian, torch.arange(5))
    assert torch.equal(fit.at(0), weight)
    assert torch.equal(fit.at(5), weight * 0)
    assert float(fit.errors()[5]) == pytest.approx(error(weight, hessian))


def test_no_change_helps_the_refit() -> None:
    weight, hessian = problem(9, 2)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    fit, kept = ColumnFit.of(weight, hessian, order), ~without(order[:4], 9, 2)
    best = float(fit.errors()[4])
    assert best < error(weight * kept - weight, hessian)
    for seed in range(5):
        nudge = 0.05 * draw_gaussian(*weight.shape, seed=seed).double() * kept
        assert best < error(fit.at(4) + nudge - weight, hessian)


def test_a_diagonal_hessian_changes_nothing_that_is_kept() -> None:
    weight, _ = problem(6, 2)
    hessian = torch.rand(12, generator=torch.Generator().manual_seed(0)).double().add(0.1).diag()
    fitted = ColumnFit.of(weight, hessian, torch.arange(6)).at(2)
    assert_close(fitted, weight.index_fill(1, torch.arange(4), 0))
    costs = (weight.square() * hessian.diagonal()).sum(0).view(6, 2).sum(1)
    assert torch.equal(greedy_order(weight, hessian, 6, EliminationSettings()), costs.argsort())


@pytest.mark.parametrize(
    ("sets", "factors"),
    [([[1], [1, 4], [0, 1, 4]], 1), ([[1], [2, 4], [0, 1, 2]], 3), ([[3]], 1), ([], 0)],
)
def test_nested_sets_share_one_factor(
    sets: list[list[int]], factors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, hessian = problem(6, 2)
    removed = torch.zeros(len(sets), 6, dtype=torch.bool)
    for row, groups in zip(removed, sets, strict=True):
        row[groups] = True
    assert is_nested(removed) == (factors <= 1)
    made, of = [], ColumnFit.of
    monkeypatch.setattr(ColumnFit, "of", lambda *a: made.append(1) or of(*a))
    found = list(compute_refits(weight, hessian, removed))
    assert len(made) == factors
    for fitted, row in zip(found, removed, strict=True):
        assert_close(fitted, oracle(weight, hessian, row.repeat_interleave(2)))


def test_order_of_nested_sets() -> None:
    order = torch.tensor([4, 0, 3, 1, 2])
    removed = torch.stack([torch.isin(torch.arange(5), order[:n]) for n in range(6)])
    assert torch.equal(find_order(removed), order)
    assert not is_nested(removed.flip(0))
