from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.scores import Scores
from sparsity_search.solvers.decisions import Knapsack, SolverRules, pose_steps
from sparsity_search.solvers.dynamic import solve_dynamic
from sparsity_search.solvers.pairs import compute_pair_loss, mix_entries, move_coordinates
from tests.helpers.solver_problems import layout_of, random_scores, scores_of, total


def with_pairs(scores: Scores, seed: int, strength: float = 1.0) -> Scores:
    """Return scores whose pairs are those of random changes: a positive quadratic form."""
    rng = np.random.default_rng(seed)
    sizes = [len(c) for c in scores.counts]
    unit = np.repeat(np.arange(len(sizes)), sizes)
    roots = np.sqrt(np.concatenate(scores.losses))
    directions = rng.normal(size=(len(unit), 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    pairs = 2 * strength * roots[:, None] * roots * (directions @ directions.T)
    pairs[unit[:, None] == unit] = 0
    return replace(scores, pairs=pairs.astype(np.float32))


def solved(scores: Scores, target: float = 0.55, **rules: object) -> tuple[Knapsack, np.ndarray]:
    knapsack = pose_steps(
        scores.layout,
        Budget(target),
        Bounds.of(scores.layout),
        SolverRules(**rules),  # type: ignore[arg-type]
    )
    return knapsack, solve_dynamic(knapsack, knapsack.losses(scores))


def loss_of(scores: Scores, knapsack: Knapsack, levels: np.ndarray, shrink: float = 1.0) -> float:
    counts = knapsack.table.at(levels)
    return total(knapsack.losses(scores), levels) + shrink * compute_pair_loss(scores, counts)


def test_at_the_levels_the_pairs_are_those_measured() -> None:
    scores = with_pairs(random_scores(layout_of([40, 20, 80]), 0), 0)
    assert scores.pairs is not None
    counts = np.array([20, 5, 80])  # levels 2, 1 and 4 of the units
    a, b, c = 1, 4, 11
    expected = scores.pairs[a, b] + scores.pairs[a, c] + scores.pairs[b, c]
    assert compute_pair_loss(scores, counts) == pytest.approx(float(expected), rel=1e-6)
    assert compute_pair_loss(scores, np.zeros(3)) == 0


@pytest.mark.parametrize("counts", [(3, 4), (13, 4), (10, 11), (39, 20), (40, 1)])
def test_between_levels_they_go_with_the_product_of_roots(counts: tuple[int, int]) -> None:
    # one correlation for all levels: the pair term is 2 rho sqrt(loss loss) everywhere
    scores = scores_of(layout_of([40, 20]), lambda i, s: (i + 1) * s ** (3 + i))
    roots = np.sqrt(np.concatenate(scores.losses))
    unit = np.repeat([0, 1], 4)
    pairs = np.where(unit[:, None] == unit, 0, 2 * 0.3 * roots[:, None] * roots)
    scores = replace(scores, pairs=pairs.astype(np.float32))
    losses = [scores.curves[i](np.array([c]))[0] for i, c in enumerate(counts)]
    expected = 2 * 0.3 * np.sqrt(losses[0] * losses[1])
    assert compute_pair_loss(scores, np.array(counts)) == pytest.approx(expected, rel=1e-5)


def test_mixtures_by_hand() -> None:
    layout = layout_of([40], zeros=[6])
    scores = Scores(layout, (np.array([10, 20, 30]),), (np.array([1.0, 4.0, 4.0]),))
    assert mix_entries(scores, 0, 6).tolist() == [0, 0, 0]
    assert mix_entries(scores, 0, 10).tolist() == [1, 0, 0]
    assert mix_entries(scores, 0, 20).tolist() == [0, 1, 0]
    assert mix_entries(scores, 0, 25).tolist() == [0, 0.5, 0.5]  # equal roots: by the counts
    assert mix_entries(scores, 0, 40).tolist() == [0, 0, 1]  # the curve goes on level
    root = np.sqrt(scores.curves[0](np.array([8]))[0])
    assert mix_entries(scores, 0, 8).tolist() == [root, 0, 0]
    free = Scores(layout, (np.array([10]),), (np.array([0.0]),))
    assert mix_entries(free, 0, 5).tolist() == [0]
    assert np.isfinite(mix_entries(free, 0, 8)).all()


@pytest.mark.parametrize("seed", range(2))
def test_moves_help_and_none_is_left(seed: int) -> None:
    scores = with_pairs(random_scores(layout_of([40, 20, 60, 40, 80]), seed, convex=True), seed)
    knapsack, start = solved(scores)
    losses = knapsack.losses(scores)
    found = move_coordinates(knapsack, losses, scores, start)
    assert total(knapsack.table.saved, found) == knapsack.least
    before, after = (loss_of(scores, knapsack, levels) for levels in (start, found))
    assert after < before
    for up, down in product(range(5), range(5)):
        levels = found.copy()
        levels[up] += 1
        levels[down] -= 1
        legal = all(0 <= k < len(w) for k, w in zip(levels, knapsack.table.saved, strict=True))
        if up != down and legal:
            assert loss_of(scores, knapsack, levels) >= after - 1e-6 * before


@pytest.mark.parametrize("seed", range(2))
def test_finds_the_best_of_all_choices_where_pairs_are_weak(seed: int) -> None:
    scores = with_pairs(random_scores(layout_of([8, 12, 10]), seed, convex=True), seed, 0.3)
    knapsack, start = solved(scores)
    found = move_coordinates(knapsack, knapsack.losses(scores), scores, start)
    steps = int(start.sum())
    best = min(
        loss_of(scores, knapsack, np.array([a, b, steps - a - b]))
        for a, b in product(range(9), range(13))
        if 0 <= steps - a - b <= 10
    )
    assert loss_of(scores, knapsack, found) == pytest.approx(best, rel=1e-3)


def test_shrink_and_no_pairs() -> None:
    scores = with_pairs(random_scores(layout_of([40, 20, 60, 40]), 1, convex=True), 1)
    knapsack, start = solved(scores)
    losses = knapsack.losses(scores)
    assert move_coordinates(knapsack, losses, scores, start, shrink=0.0).tolist() == start.tolist()
    half = replace(scores, pairs=scores.pairs / 2)
    assert (
        move_coordinates(knapsack, losses, scores, start, shrink=0.5).tolist()
        == move_coordinates(knapsack, losses, half, start).tolist()
        != move_coordinates(knapsack, losses, scores, start).tolist()
    )


def test_pairs_within_a_group_of_tied_units_count() -> None:
    scores = with_pairs(random_scores(layout_of([40, 20, 60, 40] * 2), 2, convex=True), 2)
    knapsack, start = solved(scores, tied=("block",), step=0.04)
    found = move_coordinates(knapsack, knapsack.losses(scores), scores, start)
    best = min(
        loss_of(scores, knapsack, np.array([k, int(start.sum()) - k]))
        for k in range(len(knapsack.table.saved[0]))
        if 0 <= int(start.sum()) - k < len(knapsack.table.saved[1])
    )
    assert loss_of(scores, knapsack, found) == pytest.approx(best, rel=1e-3)
    assert total(knapsack.table.saved, found) == knapsack.least


def test_two_redundant_units_are_not_both_cut() -> None:
    # alone each loses little; together they lose far more
    scores = scores_of(layout_of([40] * 4), lambda i, s: (1.0 if i < 2 else 1.5) * s**2)
    unit = np.repeat(np.arange(4), 4)
    roots = np.sqrt(np.concatenate(scores.losses))
    redundant = ((unit[:, None] == 0) & (unit == 1)) | ((unit[:, None] == 1) & (unit == 0))
    pairs = np.where(redundant, 2 * roots[:, None] * roots, 0)
    scores = replace(scores, pairs=pairs.astype(np.float32))
    knapsack, start = solved(scores, target=0.5)
    found = move_coordinates(knapsack, knapsack.losses(scores), scores, start)
    assert start[:2].sum() > start[2:].sum()
    assert found[:2].sum() < found[2:].sum()
