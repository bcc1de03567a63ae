from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sparsity_search.errors import ConfigError, UnknownNameError
from sparsity_search.evidence.evidence import Evidence
from sparsity_search.evidence.statistics import Statistic
from sparsity_search.evidence.variants import Variants
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.pruners.magnitude import MagnitudePruner
from sparsity_search.pruners.refit import RefitPruner
from sparsity_search.pruners.refit.least_squares import compute_unit_hessian, solve_least_squares
from sparsity_search.pruners.sparsegpt import SparseGPTPruner
from sparsity_search.pruners.wanda import WandaPruner
from sparsity_search.registry import PRUNERS
from sparsity_search.testing.pruner import build_evidence, draw_correlated_inputs, draw_gaussian

ROWS, COLUMNS = 24, 48
DAMPING = 0.01


def hessian_of(inputs: Tensor, damping: float = DAMPING) -> Tensor:
    """The damped Hessian that the pruner sees, in float64."""
    hessian = inputs.double().T @ inputs.double() / len(inputs)
    return hessian + damping * hessian.diagonal().mean() * torch.eye(len(hessian))


def layer_error(weights: Tensor, dense: Tensor, hessian: Tensor) -> Tensor:
    """Of each row."""
    change = weights.double() - dense.double()
    return ((change @ hessian) * change).sum(dim=1)


def ls_oracle(weight: Tensor, hessian: Tensor, keep: Tensor) -> Tensor:
    """The best weights with this mask: for each row, H_SS w_S = H_S,: w."""
    best = torch.zeros_like(weight, dtype=torch.float64)
    for row, kept, out in zip(weight.double(), keep, best, strict=True):
        out[kept] = torch.linalg.solve(hessian[kept][:, kept], hessian[kept] @ row)
    return best


def prune(weight: Tensor, inputs: Tensor, count: int, pruner: Pruner) -> Tensor:
    known = build_evidence(inputs, Statistic.HESSIAN)
    return pruner.prune(weight, known, [count], seed=0).at(weight, count)


def problem(seed: int = 0) -> tuple[Tensor, Tensor]:
    return draw_gaussian(ROWS, COLUMNS, seed=seed), draw_correlated_inputs(
        400, COLUMNS, seed=seed + 50
    )


def gap(weights: Tensor, dense: Tensor, hessian: Tensor) -> float:
    """How far the worst row's layer error is above the least possible, as a fraction of it."""
    best = layer_error(ls_oracle(dense, hessian, weights != 0), dense, hessian)
    return float((layer_error(weights, dense, hessian) / best - 1).max())


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_oracle(share: float, seed: int) -> None:
    weight, inputs = problem(seed)
    count, hessian = int(share * weight.numel()), hessian_of(inputs)
    refitted = prune(weight, inputs, count, RefitPruner())
    removed = prune(weight, inputs, count, WandaPruner()) == 0
    assert torch.equal(refitted == 0, removed)
    assert_close(refitted, ls_oracle(weight, hessian, ~removed).float(), rtol=1e-4, atol=1e-4)
    assert gap(refitted, weight, hessian) < 1e-8


@pytest.mark.parametrize(
    ("n_tokens", "damping", "outlier", "expected"),
    [
        (400, 1e-6, 1.0, 1e-8),
        (400, 0.01, 1e3, 1e-8),
        (400, 1e-4, 1e-3, 1e-8),
        (20, 1e-2, 1.0, 1e-7),  # fewer tokens than inputs: only damping makes it regular
        (20, 1e-4, 1.0, 1e-4),  # condition number 2e5
    ],
)
def test_ill_conditioned(n_tokens: int, damping: float, outlier: float, expected: float) -> None:
    weight = draw_gaussian(ROWS, COLUMNS)
    inputs = draw_correlated_inputs(n_tokens, COLUMNS)
    inputs[:, :3] *= outlier
    refitted = prune(weight, inputs, weight.numel() // 2, RefitPruner(damping=damping))
    assert gap(refitted, weight, hessian_of(inputs, damping)) < expected


def test_removing_several_at_once_by_brain_surgeon_is_the_same() -> None:
    weight, inputs = problem()
    inverse = torch.linalg.inv(hessian_of(inputs))
    for count in (1, 9, 300):
        refitted = prune(weight, inputs, count, RefitPruner(mask=MagnitudePruner()))
        removed = prune(weight, inputs, count, MagnitudePruner()) == 0
        for row, gone, ours in zip(weight.double(), removed, refitted, strict=True):
            change = row[gone] @ torch.linalg.inv(inverse[gone][:, gone]) @ inverse[gone]
            assert_close(ours, (row - change).masked_fill(gone, 0).float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_no_weights_with_that_mask_are_better(seed: int) -> None:
    weight, inputs = problem(seed)
    hessian = hessian_of(inputs)
    for source in (WandaPruner(), SparseGPTPruner(), SparseGPTPruner(mask=WandaPruner())):
        before = prune(weight, inputs, 600, source)
        after = prune(weight, inputs, 600, RefitPruner(mask=source))
        assert torch.equal(before == 0, after == 0)
        errors = [layer_error(w, weight, hessian) for w in (after, before)]
        assert (errors[0] < errors[1]).all()


def test_errors_grow_along_nested_masks() -> None:
    weight, inputs = problem()
    known, hessian = build_evidence(inputs, Statistic.HESSIAN), hessian_of(inputs)
    counts = range(0, weight.numel() + 1, 96)
    variants = RefitPruner().prune(weight, known, counts, seed=0)
    errors = torch.stack([layer_error(variants.at(weight, c), weight, hessian) for c in counts])
    assert (errors.diff(dim=0) >= 0).all()


def test_diagonal_hessian_changes_nothing() -> None:
    weight = draw_gaussian(ROWS, COLUMNS)
    inputs = torch.diag((0.7 * draw_gaussian(COLUMNS, seed=4)).exp())
    assert torch.equal(
        prune(weight, inputs, 500, RefitPruner()), prune(weight, inputs, 500, WandaPruner())
    )


@pytest.mark.parametrize("tolerance", [1e-1, 1e-6])
def test_each_row_is_a_problem_of_its_own(tolerance: float) -> None:
    weight, inputs = problem()
    hessian = compute_unit_hessian(build_evidence(inputs, Statistic.HESSIAN).inputs, DAMPING)
    removed = draw_gaussian(ROWS, COLUMNS, seed=3) > 0
    removed[0], removed[1] = False, True
    weight[2, ~removed[2]] = 0  # what is kept is worth nothing, and yet it makes up for the rest
    together = solve_least_squares(weight, removed, hessian, 500, tolerance)
    assert torch.equal(together[0], weight[0])
    for row in range(2, ROWS):
        alone = solve_least_squares(weight[[row]], removed[[row]], hessian, 500, tolerance)
        kept = ~removed[row]
        assert_close(together[row][kept], alone[0][kept], rtol=1e-3, atol=1e-4)
    if tolerance == 1e-1:  # rows that were solved have waited for the others
        return
    oracle = ls_oracle(weight, hessian_of(inputs), ~removed)
    assert_close(together.masked_fill(removed, 0), oracle.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tolerance", [1e-1, 1e-2, 1e-4])
def test_rows_stop_when_their_residual_is_small_enough(tolerance: float) -> None:
    weight, inputs = problem()
    known, hessian = build_evidence(inputs, Statistic.HESSIAN), hessian_of(inputs)
    scale = hessian.diagonal().sqrt()
    removed = prune(weight, inputs, 600, WandaPruner()) == 0

    def residual(weights: Tensor) -> Tensor:
        gradient = ((weights - weight).double() @ hessian) / scale
        return gradient.masked_fill(removed, 0).norm(dim=1)

    found = solve_least_squares(
        weight, removed, compute_unit_hessian(known.inputs, DAMPING), 500, tolerance
    )
    share = residual(found.masked_fill(removed, 0)) / residual(weight.masked_fill(removed, 0))
    assert (share <= tolerance * 1.01).all()
    # A step or two more than needed would show as a much smaller residual.
    assert (share > tolerance / 20).all()


def test_iterations_are_a_bound() -> None:
    weight, inputs = problem()
    hessian = hessian_of(inputs)
    found = [prune(weight, inputs, 600, RefitPruner(iterations=n)) for n in (1, 2, 4, 8, 16, 64)]
    errors = [float(layer_error(w, weight, hessian).sum()) for w in found]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1.2 * errors[-1]
    masked = prune(weight, inputs, 600, WandaPruner())
    assert errors[0] < float(layer_error(masked, weight, hessian).sum())
    # The first step is the best along the residual, in units with unit diagonal.
    scale, kept = hessian.diagonal().sqrt(), masked != 0
    start = (((weight - masked).double() @ hessian) / scale) * kept
    curvature = ((start / scale @ hessian / scale) * start).sum(dim=1, keepdim=True)
    step = start.square().sum(dim=1, keepdim=True) / curvature
    assert_close(found[0], (masked + step * start / scale).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("exponent", [-17, -18, -19, -20, -21, -22, -30, -40])
def test_tiny_weights(exponent: int) -> None:
    weight, inputs = problem()
    variants = RefitPruner().prune(
        weight * 10.0**exponent, build_evidence(inputs, Statistic.HESSIAN), [600], seed=0
    )
    assert int((variants.at(weight, 600) == 0).sum()) == 600


def test_dead_inputs() -> None:
    weight, inputs = problem()
    inputs[:, [5, 20, 21]] = 0
    refitted = prune(weight, inputs, 600, RefitPruner(mask=MagnitudePruner()))
    kept = refitted != 0
    dead = torch.zeros_like(kept)
    dead[:, [5, 20, 21]] = True
    assert (kept & dead).any()
    assert torch.equal(refitted[kept & dead], weight[kept & dead])
    # Weights on dead inputs are not worth making up for either.
    weight[:, [5, 20, 21]] *= 1e-3
    assert_close(
        prune(weight, inputs, 3 * ROWS, RefitPruner()),
        weight.masked_fill(dead, 0),
        rtol=0,
        atol=1e-6,
    )


def test_one_hessian_serves_all_siblings_and_counts() -> None:
    known = build_evidence(problem()[1], Statistic.HESSIAN)
    for seed in range(3):
        RefitPruner().prune(draw_gaussian(8, COLUMNS, seed=seed), known, [10, 50], seed=0)
    assert len(known.inputs._derived) == 2  # and the factor
    other = RefitPruner(damping=0.1).prune(draw_gaussian(8, COLUMNS), known, [100], seed=0)
    assert torch.equal(
        other.at(draw_gaussian(8, COLUMNS), 100),
        prune(draw_gaussian(8, COLUMNS), problem()[1], 100, RefitPruner(damping=0.1)),
    )


def test_counts_together_are_counts_alone() -> None:
    weight, inputs = problem()
    known = build_evidence(inputs, Statistic.HESSIAN)
    together = RefitPruner().prune(weight, known, [100, 600, 1100], seed=0)
    for count in together.counts:
        alone = RefitPruner().prune(weight, known, [count], seed=0)
        assert torch.equal(together.at(weight, count), alone.at(weight, count))


@pytest.mark.parametrize("seed", [0, 3])
def test_the_mask_is_that_of_the_seed(seed: int) -> None:
    weight, inputs = torch.ones(ROWS, COLUMNS), problem()[1]
    known = build_evidence(inputs, Statistic.HESSIAN)
    ours, source = (
        p.prune(weight, known, [500], seed=seed).at(weight, 500) == 0
        for p in (RefitPruner(mask=MagnitudePruner()), MagnitudePruner())
    )
    assert torch.equal(ours, source)


def test_without_a_factor_the_diagonal_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, inputs = problem()
    monkeypatch.setattr("sparsity_search.evidence.statistics._inverse_cholesky", lambda *_: None)
    variants = RefitPruner().prune(
        weight, build_evidence(inputs, Statistic.HESSIAN), [500], seed=0
    )
    assert variants.notes == ("the Hessian cannot be factorised: its diagonal was used",)
    assert torch.equal(variants.at(weight, 500), prune(weight, inputs, 500, WandaPruner()))


@pytest.mark.parametrize("mask", ["magnitude", {"name": "magnitude"}, MagnitudePruner()])
def test_a_mask_by_name_settings_or_pruner(mask: Pruner | str) -> None:
    pruner = PRUNERS.create("refit", mask=mask)
    assert pruner == RefitPruner(mask=MagnitudePruner())
    assert hash(pruner) == hash(RefitPruner(mask=MagnitudePruner()))
    assert pruner.requires is Statistic.HESSIAN
    assert not pruner.needs_gradient
    assert RefitPruner() == RefitPruner(mask=WandaPruner()) != pruner


@dataclass(frozen=True, kw_only=True)
class ByGradient(Pruner):
    """A mask source that cannot do without the gradient."""

    @property
    def needs_gradient(self) -> bool:
        return True

    def prune(
        self, weight: Tensor, evidence: Evidence, counts: Sequence[int], *, seed: int
    ) -> Variants:
        raise NotImplementedError


def test_asks_for_the_gradient_if_the_mask_does() -> None:
    assert RefitPruner(mask=ByGradient()).needs_gradient


@pytest.mark.parametrize(
    "settings",
    [{"iterations": 0}, {"tolerance": 0.0}, {"tolerance": 1.0}, {"damping": -0.1}],
)
def test_illegal_settings(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        RefitPruner(**settings)  # type: ignore[arg-type]


def test_illegal_masks() -> None:
    with pytest.raises(ConfigError, match="needs a name"):
        PRUNERS.create("refit", mask={"pattern": "row"})
    with pytest.raises(UnknownNameError, match="wanda"):
        PRUNERS.create("refit", mask="wanta")
