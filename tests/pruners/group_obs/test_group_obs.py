from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import sparsity_search.pruners.group_obs as module
from sparsity_search.errors import ConfigError
from sparsity_search.evidence.statistics import Statistic
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.pruners.bases.quotas import compute_block_quotas
from sparsity_search.pruners.group_obs import GroupOBSPruner, eliminate, solve_rows
from sparsity_search.pruners.group_obs.subsets import choose_cheapest_subset, compute_subset_losses
from sparsity_search.pruners.magnitude import MagnitudePruner
from sparsity_search.pruners.sparsegpt import SparseGPTPruner
from sparsity_search.pruners.wanda import WandaPruner
from sparsity_search.registry import PRUNERS
from sparsity_search.testing.pruner import build_evidence, draw_correlated_inputs, draw_gaussian
from tests.helpers.group_obs import (
    COLUMNS,
    ROWS,
    eliminated,
    hessian_of,
    layer_errors,
    ls_oracle,
    naive_blocks,
    naive_groups,
    problem,
    prune,
    random_mask,
    trailing_refit,
)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.77])
@pytest.mark.parametrize("width", [7, 8, 24])
def test_equals_the_naive_method(share: float, width: int) -> None:
    weight, inputs = problem()
    count = int(share * weight.numel())
    ours = prune(weight, inputs, count, GroupOBSPruner(block_size=width))
    oracle = naive_blocks(weight, hessian_of(inputs), count, width)
    assert int((oracle == 0).sum()) == count
    assert torch.equal(ours == 0, oracle == 0)
    assert_close(ours, oracle.float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rule", ["single", "multiple"])
@pytest.mark.parametrize(
    ("shape", "width"), [((2, 4), 4), ((2, 4), 12), ((1, 4), 24), ((3, 6), 12)]
)
def test_groups_equal_the_naive_method(shape: tuple[int, int], width: int, rule: str) -> None:
    weight, inputs = problem(rows=6)
    keep, group = shape
    pruner = GroupOBSPruner(pattern=f"{keep}:{group}", block_size=width, rule=rule)
    ours = prune(weight, inputs, weight.numel() * (group - keep) // group, pruner)
    oracle = naive_groups(weight, hessian_of(inputs), shape, width, rule)
    assert torch.equal(ours == 0, oracle == 0)
    assert_close(ours, oracle.float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mask", [MagnitudePruner(), WandaPruner(pattern="2:4")])
def test_blocks_of_one_column_are_sparsegpt(mask: Pruner) -> None:
    weight, inputs = problem()
    count = weight.numel() // 2
    ours = prune(weight, inputs, count, GroupOBSPruner(block_size=1, mask=mask))
    theirs = prune(weight, inputs, count, SparseGPTPruner(mask=mask))
    assert torch.equal(ours == 0, theirs == 0)
    assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_blocks_of_one_column_choose_as_sparsegpt() -> None:
    weight, inputs = problem()
    ours = prune(weight, inputs, 100, GroupOBSPruner(block_size=1))
    theirs = prune(weight, inputs, 100, SparseGPTPruner(block_size=1))
    assert torch.equal(ours == 0, theirs == 0)
    assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_one_block_is_the_least_squares(share: float) -> None:
    weight, inputs = problem()
    gone, hessian = random_mask(share=share), hessian_of(inputs)
    gone[0], gone[1] = True, False  # rows of very unlike systems, side by side
    best = ls_oracle(weight, hessian, ~gone)
    assert_close(eliminated(weight, hessian, gone, COLUMNS), best, rtol=1e-8, atol=1e-9)
    assert_close(eliminated(weight, hessian, gone, COLUMNS + 9), best, rtol=1e-8, atol=1e-9)


def test_one_block_of_a_given_mask_is_the_least_squares() -> None:
    weight, inputs = problem()
    pruner = GroupOBSPruner(block_size=COLUMNS, mask=WandaPruner())
    ours = prune(weight, inputs, 150, pruner)
    assert torch.equal(ours == 0, prune(weight, inputs, 150, WandaPruner()) == 0)
    best = ls_oracle(weight, hessian_of(inputs), ours != 0)
    assert_close(ours, best.float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("width", [1, 5, 8])
def test_blocks_refit_what_is_right_of_them(width: int) -> None:
    weight, inputs = problem()
    gone, hessian = random_mask(), hessian_of(inputs)
    oracle = weight.double()
    for start in range(0, COLUMNS, width):
        oracle = trailing_refit(oracle, hessian, gone[:, start : start + width], start)
    assert_close(eliminated(weight, hessian, gone, width), oracle, rtol=1e-8, atol=1e-9)


def test_joint_loss_is_that_of_the_least_squares() -> None:
    weight, inputs = problem(columns=6)
    hessian = hessian_of(inputs)
    subsets = torch.tensor(list(combinations(range(6), 3)))
    losses = compute_subset_losses(weight, torch.linalg.inv(hessian), subsets)
    assert losses.shape == (ROWS, 20)
    for subset, loss in zip(subsets, losses.T, strict=True):
        keep = torch.ones_like(weight, dtype=torch.bool).index_fill(1, subset, False)
        best = ls_oracle(weight, hessian, keep)
        assert_close(loss, layer_errors(best - weight, hessian), rtol=1e-10, atol=0)


def test_loss_of_a_solution_is_that_of_the_least_squares() -> None:
    weight, inputs = problem()
    gone, hessian = random_mask(), hessian_of(inputs)
    forces = solve_rows(weight, gone, torch.linalg.inv(hessian))
    assert (forces[~gone] == 0).all()
    best = ls_oracle(weight, hessian, ~gone)
    assert_close((forces * weight).sum(1), layer_errors(best - weight, hessian))


def test_a_single_removal_is_the_optimal_brain_surgeon() -> None:
    weight, inputs = problem(rows=COLUMNS)
    hessian = hessian_of(inputs)
    inverse = torch.linalg.inv(hessian)
    ours = eliminated(weight, hessian, torch.eye(COLUMNS, dtype=torch.bool), COLUMNS)
    for j, (row, pruned) in enumerate(zip(weight.double(), ours, strict=True)):
        assert_close(pruned, row - row[j] / inverse[j, j] * inverse[j], rtol=1e-8, atol=1e-9)


def test_one_weight_in_all_is_the_least_of_obs() -> None:
    weight, inputs = problem()
    saliency = weight.double() ** 2 / torch.linalg.inv(hessian_of(inputs)).diagonal()
    pruned = prune(weight, inputs, 1)
    assert int((pruned == 0).flatten().nonzero()) == int(saliency.argmin())


def grouped_inputs(group: int, n_groups: int) -> Tensor:
    """Inputs that are correlated within groups, and exactly not between them."""
    parts = [draw_correlated_inputs(40, group, seed=100 + i) for i in range(n_groups)]
    return torch.block_diag(*parts)


@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_joint_choice_is_best_where_groups_are_independent(pattern: str) -> None:
    group = int(pattern[-1])
    weight, inputs = draw_gaussian(12, 24), grouped_inputs(group, 24 // group)
    hessian, count = hessian_of(inputs), weight.numel() // 2
    joint, single = (
        prune(weight, inputs, count, GroupOBSPruner(pattern=pattern, rule=rule))
        for rule in ("multiple", "single")
    )
    errors = [
        torch.cat(
            [
                layer_errors(
                    (pruned - weight)[:, i : i + group], hessian[i : i + group, i : i + group]
                )
                for i in range(0, 24, group)
            ]
        )
        for pruned in (joint, single)
    ]
    assert (errors[0] <= errors[1] * (1 + 1e-4)).all()
    assert (errors[0] < errors[1] * 0.99).any()
    for i in range(0, 24, group):  # no subset of the group is better
        part, rows = hessian[i : i + group, i : i + group], weight[:, i : i + group]
        for subset in combinations(range(group), group // 2):
            keep = torch.ones_like(rows, dtype=torch.bool)
            keep[:, list(subset)] = False
            best = layer_errors(ls_oracle(rows, part, keep) - rows, part)
            ours = layer_errors(joint[:, i : i + group] - rows, part)
            assert (ours <= best * (1 + 1e-4)).all()


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:4"])
def test_rules_agree_on_a_diagonal_hessian(pattern: str) -> None:
    weight = draw_gaussian(ROWS, COLUMNS)
    inputs = torch.diag((0.7 * draw_gaussian(COLUMNS, seed=4)).exp())
    count = weight.numel() * 3 // 4 if pattern == "1:4" else weight.numel() // 2
    joint = prune(weight, inputs, count, GroupOBSPruner(pattern=pattern))
    assert torch.equal(
        joint, prune(weight, inputs, count, GroupOBSPruner(pattern=pattern, rule="single"))
    )
    assert torch.equal(joint[joint != 0], weight[joint != 0])
    # With no damping this is the score of Wanda.
    undamped = prune(weight, inputs, count, GroupOBSPruner(pattern=pattern, damping=0.0))
    assert torch.equal(undamped, prune(weight, inputs, count, WandaPruner(pattern=pattern)))


@pytest.mark.parametrize(("group", "number"), [(4, 1), (4, 2), (5, 3), (6, 5)])
@pytest.mark.parametrize("seed", range(3))
def test_cheapest_subset_by_brute_force(group: int, number: int, seed: int) -> None:
    weight, inputs = problem(seed, rows=40, columns=group)
    hessian = hessian_of(inputs)
    zero = draw_gaussian(40, group, seed=seed + 7) > 1
    ties = torch.arange(40 * group).view(40, group)
    chosen = choose_cheapest_subset(weight, torch.linalg.inv(hessian), number, zero, ties)
    assert (chosen.sum(1) == number).all()
    for row, dense, mask in zip(weight, zero, chosen, strict=True):
        most = min(number, int(dense.sum()))
        found = {}
        for subset in combinations(range(group), number):
            keep = torch.ones(1, group, dtype=torch.bool)
            keep[0, list(subset)] = False
            if int(dense[list(subset)].sum()) == most:
                best = ls_oracle(row[None], hessian, keep)
                found[subset] = float(layer_errors(best - row, hessian))
        assert tuple(mask.nonzero().flatten().tolist()) == min(found, key=found.__getitem__)


def test_ties_between_subsets() -> None:
    weight, zero = torch.ones(200, 4), torch.zeros(200, 4, dtype=torch.bool)
    inverse = torch.eye(4, dtype=torch.float64)
    ties = torch.randperm(800, generator=torch.Generator().manual_seed(0)).view(200, 4)
    chosen = choose_cheapest_subset(weight, inverse, 2, zero, ties)
    assert torch.equal(chosen, ties <= ties.sort(dim=1).values[:, 1:2])
    assert len({tuple(row.tolist()) for row in chosen}) == 6


def test_the_seed_decides_ties_of_groups() -> None:
    weight = torch.ones(ROWS, COLUMNS)
    inputs = 3 * torch.eye(COLUMNS)
    count, pruner = weight.numel() // 2, GroupOBSPruner(pattern="2:4")
    first, again, other = (prune(weight, inputs, count, pruner, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("rule", ["single", "multiple"])
def test_groups_lose_zeros_and_dead_inputs_first(rule: str) -> None:
    weight, inputs = problem()
    inputs[:, ::4] = 0
    weight[:, 2::4] = 0
    pruned = prune(weight, inputs, weight.numel() // 2, GroupOBSPruner(pattern="2:4", rule=rule))
    assert (pruned[:, ::2] == 0).all()
    assert_close(pruned[:, 1::2], weight[:, 1::2])
    quarter = prune(weight, inputs, weight.numel() // 4, GroupOBSPruner(pattern="*:4", rule=rule))
    assert torch.equal(quarter, weight)  # as many zeros as there are
    most = prune(weight, inputs, weight.numel() * 3 // 4, GroupOBSPruner(pattern="*:4", rule=rule))
    assert ((most.view(ROWS, -1, 4) == 0).sum(2) == 3).all()
    assert (most[:, ::2] == 0).all()


def test_dead_inputs_go_first_and_pay_for_nothing() -> None:
    weight, inputs = problem()
    inputs[:, [5, 20, 21]] = 0
    dead = 3 * ROWS
    alive = torch.ones(COLUMNS, dtype=torch.bool)
    alive[[5, 20, 21]] = False
    for count in (10, dead, dead + 1, 150):
        pruned = prune(weight, inputs, count, GroupOBSPruner(block_size=8))
        assert int((pruned[:, ~alive] == 0).sum()) == min(count, dead)
        if count <= dead:
            assert torch.equal(pruned[:, alive], weight[:, alive])


def test_zeros_stay_zero_whatever_the_updates() -> None:
    weight, inputs = problem()
    weight[:, 15:20] = 0
    for count in (5 * ROWS + 1, 150, 250):
        pruned = prune(weight, inputs, count, GroupOBSPruner(block_size=8))
        assert (pruned[:, 15:20] == 0).all()
        assert int((pruned == 0).sum()) == count


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_order_of_methods(seed: int, share: float) -> None:
    weight, inputs = problem(seed, rows=48, columns=48)
    hessian, count = hessian_of(inputs), int(share * 48 * 48)

    def error(pruned: Tensor) -> float:
        return float(layer_errors(pruned - weight, hessian).sum())

    joint = prune(weight, inputs, count, GroupOBSPruner(block_size=48))
    assert error(joint) < error(prune(weight, inputs, count, SparseGPTPruner(block_size=16)))
    best = ls_oracle(weight, hessian, joint != 0)  # one block: nothing is better with this mask
    assert error(joint) == pytest.approx(error(best), rel=1e-4)
    swept = prune(weight, inputs, count, SparseGPTPruner(mask=GroupOBSPruner(block_size=48)))
    assert error(joint) <= error(swept) * (1 + 1e-6)


@pytest.mark.parametrize("solve_bytes", [1, 2000, 2**40])
def test_parts_only_save_memory(solve_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, inputs = problem()
    gone = random_mask()
    gone[2], gone[5] = False, True
    inverse = torch.linalg.inv(hessian_of(inputs))
    together = solve_rows(weight, gone, inverse)
    monkeypatch.setattr(module, "_SOLVE_BYTES", solve_bytes)
    assert_close(solve_rows(weight, gone, inverse), together, rtol=1e-9, atol=1e-10)


def test_rows_with_nothing_to_remove() -> None:
    weight, inputs = problem()
    inverse = torch.linalg.inv(hessian_of(inputs))
    nothing = torch.zeros(ROWS, COLUMNS, dtype=torch.bool)
    assert (solve_rows(weight, nothing, inverse) == 0).all()
    assert_close(
        eliminated(weight, hessian_of(inputs), nothing, 8), weight.double(), rtol=0, atol=0
    )


@pytest.mark.parametrize("rule", ["single", "multiple"])
def test_a_singular_inverse_does_no_harm(rule: str) -> None:
    # In float64 the inverse of this factor is a matrix of ones.
    upper = torch.eye(COLUMNS) * 1e-12
    upper[0] = 1
    weight = draw_gaussian(ROWS, COLUMNS)
    done = eliminate(weight, upper, lambda block: block.weights > 0, COLUMNS)
    assert done.weights.isfinite().all()
    assert torch.equal(done.weights == 0, done.removed)
    copies = problem()[1][:, :1].expand(-1, COLUMNS)  # all inputs are one
    pruner = GroupOBSPruner(damping=0.0, pattern="2:4", rule=rule)
    pruned = prune(weight, copies, weight.numel() // 2, pruner)
    assert ((pruned.view(-1, 4) == 0).sum(1) == 2).all()


def test_rows_commute() -> None:
    weight, inputs = problem()
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0))
    pruner = GroupOBSPruner(block_size=8)
    pruned = prune(weight[order], inputs, 130, pruner)
    assert_close(pruned, prune(weight, inputs, 130, pruner)[order])


@pytest.mark.parametrize("pattern", ["block", "*:4"])
def test_a_table_is_its_counts_bit_for_bit(pattern: str) -> None:
    weight, inputs = problem()
    table, pruner = [72, 144, 216], GroupOBSPruner(block_size=8, pattern=pattern)
    known = build_evidence(inputs, Statistic.HESSIAN)
    variants = pruner.prune(weight, known, table, seed=0)
    for count in table:
        assert torch.equal(variants.at(weight, count), prune(weight, inputs, count, pruner))


@pytest.mark.parametrize(("block_size", "same"), [(1, 4), (7, 4), (10, 8), (128, 24)])
def test_blocks_are_whole_groups(block_size: int, same: int) -> None:
    weight, inputs = problem()
    first, second = (
        prune(weight, inputs, 144, GroupOBSPruner(pattern="2:4", block_size=size))
        for size in (block_size, same)
    )
    assert torch.equal(first, second)


def test_quotas_use_up_zeros_then_dead_inputs() -> None:
    zero = torch.zeros(4, 10, dtype=torch.bool)
    zero[:, 8] = True
    dead = torch.zeros(10, dtype=torch.bool)
    dead[1] = True
    assert compute_block_quotas(4, zero, dead, 4) == [0, 0, 4]
    assert compute_block_quotas(8, zero, dead, 4) == [4, 0, 4]
    assert compute_block_quotas(24, zero, dead, 4) == [10, 8, 6]
    assert compute_block_quotas(40, zero, dead, 4) == [16, 16, 8]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"block_size": 0}, "block_size"),
        ({"damping": -0.1}, "damping"),
        ({"rule": "joint"}, "rule"),
        ({"pattern": "row"}, "block or N:M"),
        ({"pattern": "8:16"}, "rule single"),
        ({"mask": {"pattern": "row"}}, "needs a name"),
    ],
)
def test_illegal_settings(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        PRUNERS.create("group_obs", **settings)


def test_large_groups_by_the_single_rule() -> None:
    weight, inputs = problem(columns=32)
    pruned = prune(
        weight, inputs, weight.numel() // 2, GroupOBSPruner(pattern="8:16", rule="single")
    )
    assert ((pruned.view(-1, 16) == 0).sum(1) == 8).all()
