from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import sparsity_search.pruners.sparsegpt as module
from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.evidence.evidence import Evidence
from sparsity_search.evidence.statistics import InputStatistics, Statistic
from sparsity_search.pruners.bases.quotas import compute_block_quotas
from sparsity_search.pruners.magnitude import MagnitudePruner
from sparsity_search.pruners.sparsegpt import SparseGPTPruner, SweepResult, sweep
from sparsity_search.pruners.wanda import WandaPruner
from sparsity_search.registry import PRUNERS
from sparsity_search.testing.pruner import build_evidence, draw_correlated_inputs, draw_gaussian
from tests.helpers.pruner_oracles import DAMPING, hessian_of, layer_error, ls_oracle

ROWS, COLUMNS = 24, 48
PRUNER = SparseGPTPruner(block_size=16, damping=DAMPING)


def naive(weight: Tensor, hessian: Tensor, count: int, block: int) -> Tensor:
    """Column by column in float64, by explicit inverses of the trailing Hessian; no factor."""
    weight, columns, done = weight.double().clone(), weight.shape[1], 0
    inverses = [torch.linalg.inv(hessian[j:, j:]) for j in range(columns)]
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        quota = count * stop // columns - done
        saliency = torch.stack(
            [weight[:, j] ** 2 / inverses[j][0, 0] for j in range(start, stop)], dim=1
        )
        chosen = saliency.flatten().argsort()[:quota]
        removed = torch.zeros(saliency.numel(), dtype=torch.bool).index_fill(0, chosen, True)
        for j, column in enumerate(removed.view_as(saliency).T, start):
            scale = weight[:, j] * column / inverses[j][0, 0]
            weight[:, j:] -= scale[:, None] * inverses[j][0]
            weight[column, j] = 0
        done += quota
    return weight


def prune(weight: Tensor, inputs: Tensor, count: int, pruner: SparseGPTPruner = PRUNER) -> Tensor:
    variants = pruner.prune(weight, build_evidence(inputs, Statistic.HESSIAN), [count], seed=0)
    return variants.at(weight, count)


def swept(weight: Tensor, inputs: Tensor, removed: Tensor, block_size: int = 16) -> SweepResult:
    factor = build_evidence(inputs, Statistic.HESSIAN).inputs.inverse_factor(DAMPING)
    return sweep(weight, factor.upper.to(weight.dtype), lambda _, b: removed[:, b], block_size)


def problem(seed: int = 0) -> tuple[Tensor, Tensor]:
    return draw_gaussian(ROWS, COLUMNS, seed=seed), draw_correlated_inputs(
        400, COLUMNS, seed=seed + 50
    )


@pytest.mark.parametrize("share", [0.1, 0.5, 0.77])
@pytest.mark.parametrize("block", [7, 16, 48])
def test_equals_the_naive_method(share: float, block: int) -> None:
    weight, inputs = problem()
    count = int(share * weight.numel())
    ours = prune(weight, inputs, count, SparseGPTPruner(block_size=block))
    oracle = naive(weight, hessian_of(inputs), count, block)
    assert torch.equal(ours == 0, oracle == 0)
    assert_close(ours, oracle.float(), rtol=1e-4, atol=1e-4)


def test_sweep_identities() -> None:
    weight, inputs = problem()
    removed = draw_gaussian(ROWS, COLUMNS, seed=3) > 0
    factor = build_evidence(inputs, Statistic.HESSIAN).inputs.inverse_factor(DAMPING)
    result = swept(weight.double(), inputs, removed)
    assert_close(result.weights, weight - result.errors @ factor.upper.double())
    assert (result.weights[removed] == 0).all()
    assert (result.errors[~removed] == 0).all()
    error = layer_error(result.weights - weight, hessian_of(inputs))
    assert float(result.errors.square().sum()) == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("block_size", [1, 5, 48, 128])
def test_blocks_only_matter_for_the_choice(block_size: int) -> None:
    weight, inputs = problem()
    removed = draw_gaussian(ROWS, COLUMNS, seed=3) > 0
    lazy = swept(weight.double(), inputs, removed, block_size)
    assert_close(lazy.weights, swept(weight.double(), inputs, removed, 16).weights)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_order_of_methods(seed: int, share: float) -> None:
    weight, inputs = (
        draw_gaussian(48, 48, seed=seed),
        draw_correlated_inputs(400, 48, seed=seed + 50),
    )
    statistics, hessian = build_evidence(inputs, Statistic.HESSIAN), hessian_of(inputs)
    count = int(share * weight.numel())

    def pruned(pruner: SparseGPTPruner | WandaPruner | MagnitudePruner) -> Tensor:
        return pruner.prune(weight, statistics, [count], seed=0).at(weight, count)

    by_wanda = pruned(WandaPruner())
    ladder = [
        pruned(PRUNER),
        by_wanda,
        pruned(MagnitudePruner()),
    ]
    errors = [layer_error(w - weight, hessian) for w in ladder]
    assert errors == sorted(errors)
    updated = swept(weight, inputs, by_wanda == 0).weights
    assert layer_error(updated - weight, hessian) < errors[1]
    for candidate in [*ladder, updated]:  # this one is a theorem
        best = layer_error(ls_oracle(weight, hessian, candidate != 0) - weight, hessian)
        assert best <= layer_error(candidate - weight, hessian) * (1 + 1e-9)


def test_isotropic_inputs_give_magnitude_by_blocks() -> None:
    weight = draw_gaussian(ROWS, COLUMNS)
    inputs = 3 * torch.eye(COLUMNS).repeat(2, 1)
    pruned = prune(weight, inputs, 600)
    kept = pruned != 0
    assert torch.equal(pruned[kept], weight[kept])
    for block, mask in zip(weight.split(16, dim=1), kept.split(16, dim=1), strict=True):
        assert int((~mask).sum()) == 200
        assert block[~mask].abs().max() < block[mask].abs().min()


def test_diagonal_hessian_gives_wanda_over_the_layer() -> None:
    weight = draw_gaussian(ROWS, COLUMNS)
    inputs = torch.diag((0.7 * draw_gaussian(COLUMNS, seed=4)).exp())
    pruned = prune(weight, inputs, 500, SparseGPTPruner(block_size=COLUMNS, damping=0.0))
    statistics = build_evidence(inputs, Statistic.NORM)
    wanda = WandaPruner(pattern="layer").prune(weight, statistics, [500], seed=0).at(weight, 500)
    assert torch.equal(pruned, wanda)


def test_rows_commute() -> None:
    weight, inputs = problem()
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0))
    assert_close(prune(weight[order], inputs, 700), prune(weight, inputs, 700)[order])


@pytest.mark.parametrize("stack_bytes", [1, 2 * 8 * ROWS * COLUMNS])
def test_stacking_only_saves_time(stack_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, inputs = problem()
    counts = range(0, weight.numel() + 1, 96)
    statistics = build_evidence(inputs, Statistic.HESSIAN)
    stacked = PRUNER.prune(weight, statistics, counts, seed=0)
    monkeypatch.setattr(module, "_STACK_BYTES", stack_bytes)
    apart = PRUNER.prune(weight, statistics, counts, seed=0)
    for count in counts:
        assert_close(stacked.at(weight, count), apart.at(weight, count), rtol=1e-4, atol=1e-5)


def test_dead_inputs_go_first_and_pay_for_nothing() -> None:
    weight, inputs = problem()
    inputs[:, [5, 20, 21]] = 0
    dead = 3 * ROWS
    for count in (10, dead, dead + 1, 500):
        pruned = prune(weight, inputs, count)
        alive = torch.ones(COLUMNS, dtype=torch.bool).index_fill(
            0, torch.tensor([5, 20, 21]), False
        )
        assert int((pruned[:, ~alive] == 0).sum()) == min(count, dead)
        if count <= dead:
            assert torch.equal(pruned[:, alive], weight[:, alive])


def test_zeros_stay_zero_whatever_the_updates() -> None:
    weight, inputs = problem()
    weight[:, 30:40] = 0
    for count in (10 * ROWS + 1, 500, 900):
        assert (prune(weight, inputs, count)[:, 30:40] == 0).all()


def test_one_factor_serves_all_siblings() -> None:
    statistics = build_evidence(problem()[1], Statistic.HESSIAN)
    for seed in range(3):
        PRUNER.prune(draw_gaussian(8, COLUMNS, seed=seed), statistics, [10, 50], seed=0)
    assert len(statistics.inputs._derived) == 1


def test_kept_weights_do_not_round_to_zero() -> None:
    # float16 has nothing between 0 and 6e-8: updates of such weights would round to zero.
    weight = (draw_gaussian(ROWS, COLUMNS).sign() * 6e-8).half()
    variants = PRUNER.prune(weight, build_evidence(problem()[1], Statistic.HESSIAN), [500], seed=0)
    pruned = variants.at(weight, 500)
    assert int((pruned == 0).sum()) == 500
    assert (pruned.abs() == torch.finfo(torch.float16).tiny).any()


def test_overflow_is_an_error() -> None:
    inputs = draw_gaussian(60, 1).expand(60, COLUMNS) + 0.01 * draw_gaussian(60, COLUMNS, seed=1)
    weight = torch.full((ROWS, COLUMNS), 6e4, dtype=torch.float16)
    statistics = build_evidence(inputs, Statistic.HESSIAN)
    with pytest.raises(NumericalError, match="range of"):
        PRUNER.prune(weight, statistics, [800], seed=0)


def test_notes_tell_of_raised_damping(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, statistics = (
        draw_gaussian(ROWS, COLUMNS),
        build_evidence(problem()[1][:5], Statistic.HESSIAN),
    )
    assert PRUNER.prune(weight, statistics, [9], seed=0).notes == ()
    (note,) = SparseGPTPruner(damping=0.0).prune(weight, statistics, [9], seed=0).notes
    assert note.startswith("damping raised from 0 to ")
    monkeypatch.setattr("sparsity_search.evidence.statistics._inverse_cholesky", lambda *_: None)
    statistics = build_evidence(problem()[1], Statistic.HESSIAN)
    fallback = PRUNER.prune(weight, statistics, [500], seed=0)
    assert fallback.notes == ("the Hessian cannot be factorised: its diagonal was used",)
    kept = fallback.at(weight, 500) != 0
    assert torch.equal(fallback.at(weight, 500)[kept], weight[kept])


def test_statistics_without_tokens() -> None:
    with pytest.raises(NumericalError, match="no tokens"):
        PRUNER.prune(
            draw_gaussian(4, 8),
            Evidence(inputs=InputStatistics(8, Statistic.HESSIAN)),
            [3],
            seed=0,
        )


@pytest.mark.parametrize("settings", [{"block_size": 0}, {"damping": -0.1}, {"damping": 2.0}])
def test_illegal_settings(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        SparseGPTPruner(**settings)  # type: ignore[arg-type]


@given(
    st.integers(1, 5), st.integers(1, 12), st.integers(1, 14), st.floats(0, 1), st.integers(0, 99)
)
def test_quotas(rows: int, columns: int, block: int, share: float, seed: int) -> None:
    zero = draw_gaussian(rows, columns, seed=seed) > 0.8
    dead = draw_gaussian(columns, seed=seed + 1) > 0.8
    zeros, free = int(zero.sum()), int((zero | dead).sum())
    count = max(zeros, int(share * zero.numel()))
    quotas = compute_block_quotas(count, zero, dead, block)
    sizes = [part.numel() for part in zero.split(block, dim=1)]
    of_zeros = [int(part.sum()) for part in zero.split(block, dim=1)]
    of_free = [int(part.sum()) for part in (zero | dead).split(block, dim=1)]
    assert sum(quotas) == count
    assert len(quotas) == len(sizes)
    bounds = (of_free, sizes) if count >= free else (of_zeros, of_free)
    assert all(low <= q <= high for low, q, high in zip(bounds[0], quotas, bounds[1], strict=True))


def naive_groups(weight: Tensor, hessian: Tensor, keep: int, group: int) -> Tensor:
    """As `naive`, but each row chooses anew whenever it comes to a group."""
    weight, columns = weight.double().clone(), weight.shape[1]
    inverses = [torch.linalg.inv(hessian[j:, j:]) for j in range(columns)]
    for start in range(0, columns, group):
        where = range(start, start + group)
        saliency = torch.stack([weight[:, j] ** 2 / inverses[j][0, 0] for j in where], dim=1)
        removed = saliency.argsort(1).argsort(1) < group - keep
        for j, column in zip(where, removed.T, strict=True):
            scale = weight[:, j] * column / inverses[j][0, 0]
            weight[:, j:] -= scale[:, None] * inverses[j][0]
            weight[column, j] = 0
    return weight


@pytest.mark.parametrize(("keep", "group"), [(2, 4), (4, 8), (1, 4), (5, 6)])
def test_groups_equal_the_naive_method(keep: int, group: int) -> None:
    weight, inputs = problem()
    count = weight.numel() * (group - keep) // group
    ours = prune(weight, inputs, count, SparseGPTPruner(pattern=f"{keep}:{group}"))
    oracle = naive_groups(weight, hessian_of(inputs), keep, group)
    assert torch.equal(ours == 0, oracle == 0)
    assert_close(ours, oracle.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mask", ["wanda", {"name": "magnitude", "pattern": "row"}, WandaPruner()])
def test_the_sweep_of_a_given_mask(mask: WandaPruner | str | dict[str, str]) -> None:
    weight, inputs = problem()
    pruner = PRUNERS.create("sparsegpt", mask=mask)
    assert isinstance(pruner.mask, (WandaPruner, MagnitudePruner))
    statistics = build_evidence(inputs, Statistic.HESSIAN)
    table = [100, 600, 900]
    variants = pruner.prune(weight, statistics, table, seed=0)
    source = pruner.mask.prune(weight, statistics, table, seed=0)
    for count in table:
        removed = source.at(weight, count) == 0
        pruned = variants.at(weight, count)
        assert torch.equal(pruned == 0, removed)
        assert_close(pruned, swept(weight, inputs, removed).weights, rtol=1e-4, atol=1e-4)


def test_illegal_pattern_and_mask() -> None:
    with pytest.raises(ConfigError, match="block or N:M"):
        SparseGPTPruner(pattern="row")
    with pytest.raises(ConfigError, match="needs a name"):
        PRUNERS.create("sparsegpt", mask={"pattern": "row"})
