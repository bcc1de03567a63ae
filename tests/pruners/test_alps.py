from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import sparsity_search.pruners.alps as module
from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.evidence.evidence import Evidence
from sparsity_search.evidence.statistics import InputStatistics, Statistic
from sparsity_search.profiles.patterns import Pattern
from sparsity_search.pruners.alps import (
    ALPSPruner,
    Spectrum,
    build_smallest_choice,
    compute_next_rho,
    compute_spectrum,
    refit,
)
from sparsity_search.pruners.bases.order import draw_tie_breaks
from sparsity_search.pruners.sparsegpt import SparseGPTPruner
from sparsity_search.testing.pruner import build_evidence, draw_correlated_inputs, draw_gaussian
from tests.helpers.alps_oracle import largest, naive
from tests.helpers.pruner_oracles import DAMPING, hessian_of, layer_error, ls_oracle

ROWS, COLUMNS = 24, 48
SIZE = ROWS * COLUMNS
PRUNER = ALPSPruner()


def prune(weight: Tensor, inputs: Tensor, count: int, pruner: ALPSPruner = PRUNER) -> Tensor:
    variants = pruner.prune(weight, build_evidence(inputs, Statistic.HESSIAN), [count], seed=0)
    return variants.at(weight, count)


def problem(seed: int = 0) -> tuple[Tensor, Tensor]:
    return draw_gaussian(ROWS, COLUMNS, seed=seed), draw_correlated_inputs(
        400, COLUMNS, seed=seed + 50
    )


def admm(
    weight: Tensor, inputs: Tensor, count: int, pruner: ALPSPruner = PRUNER
) -> tuple[module.Support, Spectrum]:
    spectrum = compute_spectrum(build_evidence(inputs, Statistic.HESSIAN).inputs, DAMPING)
    ties = draw_tie_breaks(weight.shape, 0, weight.device)
    choose = build_smallest_choice(Pattern.parse(pruner.pattern), count, weight == 0, ties)
    return pruner.support(weight * spectrum.scale, spectrum, choose), spectrum


@pytest.mark.parametrize("rho", [0.01, 0.1, 30.0, 3000.0])
@pytest.mark.parametrize(
    ("pattern", "count"),
    [("layer", 100), ("layer", SIZE // 2), ("layer", 900), ("2:4", SIZE // 2), ("*:8", 6 * 144)],
)
def test_equals_the_naive_method(pattern: str, count: int, rho: float) -> None:
    weight, inputs = problem()
    hessian, pruner = hessian_of(inputs), ALPSPruner(pattern=pattern, rho=rho, pcg_iterations=150)
    keep, iterations = naive(weight, hessian, count, Pattern.parse(pattern).group, rho)
    ours = prune(weight, inputs, count, pruner)
    assert torch.equal(ours != 0, keep)
    assert_close(ours, ls_oracle(weight, hessian, keep).float(), rtol=1e-3, atol=1e-3)
    assert admm(weight, inputs, count, pruner)[0].iterations == iterations


@pytest.mark.parametrize(("most", "every"), [(1, 3), (4, 3), (11, 3), (300, 2), (300, 7)])
def test_iterations_and_checks(most: int, every: int) -> None:
    weight, inputs = problem()
    keep, iterations = naive(weight, hessian_of(inputs), 600, 0, 0.1, most, every)
    pruner = ALPSPruner(iterations=most, check_every=every)
    assert admm(weight, inputs, 600, pruner)[0].iterations == iterations
    assert torch.equal(prune(weight, inputs, 600, pruner) != 0, keep)


def test_admm_gives_the_projection_of_its_last_weights() -> None:
    weight, inputs = problem()
    found, _ = admm(weight, inputs, 600)
    assert torch.equal(found.weights == 0, found.removed)
    assert int(found.removed.sum()) == 600


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("pattern", "share"), [("layer", 0.5), ("layer", 0.6), ("layer", 0.7), ("2:4", 0.5)]
)
def test_better_than_sparsegpt(pattern: str, share: float, seed: int) -> None:
    weight, inputs = (
        draw_gaussian(48, 48, seed=seed),
        draw_correlated_inputs(400, 48, seed=seed + 50),
    )
    statistics, hessian = build_evidence(inputs, Statistic.HESSIAN), hessian_of(inputs)
    count = round(share * weight.numel())
    other = SparseGPTPruner(block_size=16, pattern=pattern.replace("layer", "block"))
    pruned = [
        pruner.prune(weight, statistics, [count], seed=0).at(weight, count)
        for pruner in (ALPSPruner(pattern=pattern), other)
    ]
    ours, theirs = (layer_error(p - weight, hessian) for p in pruned)
    # The optima on the two supports: the support itself is better, not only the weights on it.
    best, sweep = (
        layer_error(ls_oracle(weight, hessian, p != 0) - weight, hessian) for p in pruned
    )
    assert ours < 0.7 * theirs
    assert best < 0.95 * sweep
    assert best <= ours * (1 + 1e-6)
    assert ours < 1.01 * best


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_refit_is_the_best_of_a_krylov_space(steps: int) -> None:
    weight, inputs = problem()
    hessian = compute_spectrum(
        build_evidence(inputs, Statistic.HESSIAN).inputs, DAMPING
    ).hessian.double()
    removed = draw_gaussian(ROWS, COLUMNS, seed=3) > 0
    start = torch.where(removed, -weight, 0.1 * draw_gaussian(ROWS, COLUMNS, seed=4)).double()
    found = refit(start, hessian, removed, steps)
    assert torch.equal(found[removed], start[removed])
    for row, gone, ours in zip(start, removed, found, strict=True):
        basis, power = [], -(hessian @ row) * ~gone
        for _ in range(steps):
            basis.append(power / power.norm())
            power = (hessian @ power) * ~gone
        best = row
        if steps:
            space = torch.stack(basis)
            best = (
                row - torch.linalg.solve(space @ hessian @ space.T, space @ hessian @ row) @ space
            )
        assert_close(ours, best)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_refit_ends_at_least_squares(dtype: torch.dtype) -> None:
    weight, inputs = problem()
    hessian = compute_spectrum(build_evidence(inputs, Statistic.HESSIAN).inputs, DAMPING).hessian
    removed = draw_gaussian(ROWS, COLUMNS, seed=3) > 0
    removed[0], removed[1] = True, False  # nothing to solve, and solved by the dense weights
    start = torch.where(removed, -weight, torch.zeros(())).to(dtype)
    found = refit(start, hessian.to(dtype), removed, 300)
    best = ls_oracle(weight, hessian.double(), ~removed)
    tolerance = 1e-4 if dtype is torch.float32 else 1e-6
    assert_close(weight + found.double(), best, rtol=tolerance, atol=tolerance)
    assert torch.equal(found[:2], start[:2])


@settings(max_examples=40)
@given(st.data())
def test_smallest_is_the_head_of_a_sort(data: st.DataObject) -> None:
    group = data.draw(st.sampled_from([0, 2, 4, 5]))
    rows, columns = data.draw(st.integers(1, 5)), (group or 3) * data.draw(st.integers(1, 3))
    size, seed = rows * columns, data.draw(st.integers(0, 99))
    weight = (
        draw_gaussian(rows, columns, seed=seed) * data.draw(st.sampled_from([1, 1e6]))
    ).round()
    zero, ties = (
        draw_gaussian(rows, columns, seed=seed + 1) > 1,
        draw_tie_breaks(weight.shape, seed, "cpu"),
    )
    number = data.draw(st.integers(1, group or size))
    pattern = Pattern.parse(f"*:{group}" if group else "layer")
    removed = build_smallest_choice(pattern, number * (size // group if group else 1), zero, ties)(
        weight
    )
    keys = list(
        zip(
            (~zero).flatten().tolist(),
            (weight.abs() * ~zero).flatten().tolist(),
            ties.flatten().tolist(),
            strict=True,
        )
    )
    wanted = []
    for start in range(0, size, group or size):
        members = range(start, start + (group or size))
        wanted += sorted(members, key=keys.__getitem__)[:number]
    assert removed.flatten().nonzero().flatten().tolist() == sorted(wanted)


@pytest.mark.parametrize(
    ("share", "moving", "wanted"),
    [
        (1.5, True, 1.3),
        (0.1, True, 1.3),
        (0.099, True, 1.2),
        (0.005, True, 1.2),
        (0.0049, True, 1.1),
        (0.0049, False, 0.2),
        (0.0, False, 0.2),
    ],
)
def test_schedule(share: float, moving: bool, wanted: float) -> None:
    assert compute_next_rho(2.0, share, moving) == pytest.approx(2 * wanted)
    assert compute_next_rho(1e6, 1.0, moving=True) == 1e6
    assert compute_next_rho(1e-6, 0.0, moving=False) == 1e-6


def test_spectrum() -> None:
    inputs = problem()[1]
    spectrum = compute_spectrum(build_evidence(inputs, Statistic.HESSIAN).inputs, DAMPING)
    hessian = hessian_of(inputs)
    assert all(t.dtype == torch.float32 for t in spectrum[:4])
    assert_close(spectrum.hessian.diagonal(), torch.ones(COLUMNS))
    assert float(spectrum.scale.mean()) == pytest.approx(1)
    factor = hessian.diagonal().sqrt().mean()
    back = spectrum.hessian.double() * spectrum.scale * spectrum.scale[:, None] * factor**2
    assert_close(back, hessian, rtol=1e-5, atol=1e-5)
    for rho in (1e-3, 0.1, 20.0):
        wanted = rho * torch.linalg.inv(spectrum.hessian.double() + rho * torch.eye(COLUMNS))
        assert_close(spectrum.smoother(rho), wanted.float(), rtol=1e-4, atol=1e-5)


def test_one_decomposition_serves_siblings_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda h: calls.append(h.dtype) or eigh(h))
    statistics = build_evidence(problem()[1], Statistic.HESSIAN)
    for seed in range(3):
        PRUNER.prune(draw_gaussian(8, COLUMNS, seed=seed), statistics, [10, 50], seed=0)
    assert calls == [torch.float64]
    ALPSPruner(damping=0.1).prune(draw_gaussian(8, COLUMNS), statistics, [10], seed=0)
    assert len(calls) == 2


@pytest.mark.parametrize(("pattern", "count"), [("layer", 500), ("2:4", SIZE // 2)])
@pytest.mark.parametrize("spread", [0.0, 0.7])
def test_diagonal_hessian(pattern: str, count: int, spread: float) -> None:
    """There is nothing to make up for, and the best mask is the largest scaled magnitudes.

    ADMM comes close to that mask, but need not find it: a small penalty lets some weights swap.
    """
    weight = draw_gaussian(ROWS, COLUMNS)
    inputs = torch.diag((spread * draw_gaussian(COLUMNS, seed=4)).exp())
    hessian = hessian_of(inputs)
    pruned = prune(weight, inputs, count, ALPSPruner(pattern=pattern))
    kept = pruned != 0
    assert_close(pruned[kept], weight[kept], rtol=1e-6, atol=0)
    best = largest(weight * hessian.diagonal().sqrt(), count, Pattern.parse(pattern).group)
    error = layer_error(pruned - weight, hessian)
    assert error < 1.03 * layer_error(weight * ~best, hessian)
    assert int((kept ^ best).sum()) < 0.05 * SIZE


def test_rows_commute_and_weights_scale() -> None:
    weight, inputs = problem()
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0))
    pruned = prune(weight, inputs, 700)
    permuted = prune(weight[order], inputs, 700)
    assert torch.equal(permuted == 0, pruned[order] == 0)
    assert_close(permuted, pruned[order], rtol=1e-4, atol=1e-5)
    assert torch.equal(prune(weight * 2.0**-40, inputs, 700), pruned * 2.0**-40)


@pytest.mark.parametrize("scale", [1e-17, 1e12])
def test_any_scale_of_inputs(scale: float) -> None:
    weight, inputs = problem()
    pruned, base = prune(weight, inputs * scale, 700), prune(weight, inputs, 700)
    assert torch.equal(pruned == 0, base == 0)
    assert_close(pruned, base, rtol=1e-3, atol=1e-4)


def test_dead_inputs_go_first_and_pay_for_nothing() -> None:
    weight, inputs = problem()
    inputs[:, [5, 20, 21]] = 0
    alive = torch.ones(COLUMNS, dtype=torch.bool).index_fill(0, torch.tensor([5, 20, 21]), False)
    dead = 3 * ROWS
    for count in (10, dead, dead + 1, 500):
        pruned = prune(weight, inputs, count)
        kept = pruned[:, ~alive] != 0
        assert int((~kept).sum()) == min(count, dead)
        assert torch.equal(pruned[:, ~alive][kept], weight[:, ~alive][kept])
        if count <= dead:
            assert torch.equal(pruned[:, alive], weight[:, alive])
    # What never moves, whatever the penalty, is settled at the first check after 30 iterations.
    masked = weight * alive
    assert admm(masked, inputs, dead)[0].iterations == 33


def test_zeros_stay_zero_whatever_the_updates() -> None:
    weight, inputs = problem()
    weight[:, 30:40] = 0
    for count in (10 * ROWS + 1, 500, 900):
        assert (prune(weight, inputs, count)[:, 30:40] == 0).all()


def test_zeros_go_first_in_their_group() -> None:
    weight, inputs = problem()
    weight[:, 8] = 0
    weight[2, 12:16] = 0
    pruned = prune(weight, inputs, SIZE // 2, ALPSPruner(pattern="2:4"))
    assert (pruned[:, 8] == 0).all()
    assert ((pruned.view(-1, 4) == 0).sum(1) == 2).all()


def test_counts_do_not_see_each_other() -> None:
    weight, inputs = problem()
    statistics = build_evidence(inputs, Statistic.HESSIAN)
    table = [100, 400, 401, 900]
    together = PRUNER.prune(weight, statistics, table, seed=0)
    for count in reversed(table):
        alone = PRUNER.prune(weight, statistics, [count], seed=0)
        assert torch.equal(together.at(weight, count), alone.at(weight, count))


def test_ties_alone_see_the_seed() -> None:
    weight = draw_gaussian(ROWS, COLUMNS).sign()
    statistics = build_evidence(torch.eye(COLUMNS), Statistic.HESSIAN)
    first, again, other = (
        PRUNER.prune(weight, statistics, [500], seed=seed).at(weight, 500) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_notes_tell_of_raised_damping(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, statistics = (
        draw_gaussian(ROWS, COLUMNS),
        build_evidence(problem()[1][:5], Statistic.HESSIAN),
    )
    assert PRUNER.prune(weight, statistics, [9], seed=0).notes == ()
    (note,) = ALPSPruner(damping=0.0).prune(weight, statistics, [9], seed=0).notes
    assert note.startswith("damping raised from 0 to ")
    monkeypatch.setattr("sparsity_search.evidence.statistics._inverse_cholesky", lambda *_: None)
    statistics = build_evidence(problem()[1], Statistic.HESSIAN)
    fallback = PRUNER.prune(weight, statistics, [500], seed=0)
    assert fallback.notes == ("the Hessian cannot be factorised: its diagonal was used",)
    kept = fallback.at(weight, 500) != 0
    assert_close(fallback.at(weight, 500)[kept], weight[kept], rtol=1e-6, atol=0)


def test_statistics_without_tokens() -> None:
    nothing = Evidence(inputs=InputStatistics(8, Statistic.HESSIAN))
    with pytest.raises(NumericalError, match="no tokens"):
        PRUNER.prune(draw_gaussian(4, 8), nothing, [3], seed=0)


@pytest.mark.parametrize(
    "illegal",
    [
        {"rho": 0.0},
        {"rho": -1.0},
        {"rho": 2e6},
        {"rho": float("nan")},
        {"iterations": 0},
        {"check_every": 0},
        {"pcg_iterations": -1},
        {"damping": -0.1},
        {"pattern": "row"},
        {"pattern": "block"},
    ],
)
def test_illegal_settings(illegal: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(illegal))):
        ALPSPruner(**illegal)  # type: ignore[arg-type]
