"""Pairs of measurements, and how predictions of them are judged."""

from __future__ import annotations

from math import inf, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from sparsity_search.searchers.bases.models import ModelSettings, TrainingPairs, fit
from sparsity_search.searchers.bases.training import (
    RankCorrelation,
    build_pairs,
    can_fit,
    compute_kendall,
    correlate_ranks,
    drop_failed,
    join,
    judge,
    log_scores,
    split_pairs,
)
from sparsity_search.spaces.levels import SearchSpace
from sparsity_search.testing.problems import toy_space
from sparsity_search.trials.history import Fidelity, Measurement, Score

SPACE = toy_space(*(100,) * 8)


def measured(rounds: int = 4, n: int = 8, space: SearchSpace = SPACE) -> list[Measurement]:
    """Return rounds of random candidates; the score rises with the first level."""
    rng = np.random.default_rng(0)
    return [
        Measurement(
            round=round_,
            rung=0,
            candidate=(c := space.sample(rng, 2.0)),
            fidelity=Fidelity(64, round_),
            score=Score(float(np.exp(0.3 * c[0])), ()),
        )
        for round_ in range(rounds)
        for _ in range(n)
    ]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=20))
def test_kendall_is_tau_b(pairs: list[tuple[int, int]]) -> None:
    first, second = np.array(pairs).T
    expected = kendalltau(first, second).statistic
    assert compute_kendall(first, second) == pytest.approx(0.0 if np.isnan(expected) else expected)


def test_kendall_within_groups() -> None:
    first, second = np.array([1, 2, 11, 12]), np.array([12, 11, 2, 1])
    groups = np.array([0, 0, 1, 1])
    assert compute_kendall(first, second, groups) == -1
    assert compute_kendall(first, np.array([1, 2, -2, -1]), groups) == 1


def test_pairs_are_logs_in_groups_of_equal_tokens() -> None:
    history = measured(2, 3)
    pairs = build_pairs(SPACE, history)
    assert pairs.groups.tolist() == [0, 0, 0, 1, 1, 1]
    assert pairs.scores == pytest.approx([log(m.score.value) for m in history])
    assert pairs.blocks["levels"].tolist() == [list(m.candidate) for m in history]
    assert not len(build_pairs(SPACE, []))


def test_scores_that_are_not_positive_stay() -> None:
    assert log_scores(np.array([1.0, 0.0, 2.0])).tolist() == [1.0, 0.0, 2.0]


def test_failures_are_left_out() -> None:
    bad = Measurement(
        round=0, rung=0, candidate=(0,) * 8, fidelity=Fidelity(1), score=Score(inf, ())
    )
    assert drop_failed([*measured(1, 2), bad]) == measured(1, 2)


def test_can_fit_needs_two_scores_of_one_fidelity() -> None:
    pairs = build_pairs(SPACE, measured(3, 1))
    assert not can_fit(pairs)
    assert can_fit(build_pairs(SPACE, measured(1, 2)))


def test_joined_pairs_share_no_group() -> None:
    first, second = build_pairs(SPACE, measured(2, 2)), build_pairs(SPACE, measured(1, 3))
    both = join(first, second)
    assert both.groups.tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert len(both) == 7
    assert both.blocks["levels"].shape == (7, 8)


def judged(history: list[Measurement], **more: int) -> list[RankCorrelation]:
    rounds = [m.round for m in history]
    return correlate_ranks(build_pairs(SPACE, history), rounds, ModelSettings(), startup=8, **more)


def test_a_round_is_predicted_by_the_rounds_before_it() -> None:
    history = measured(4)
    found = judged(history)
    assert [(entry.round, entry.n) for entry in found] == [(1, 8), (2, 8), (3, 8)]
    before, now = build_pairs(SPACE, history[:24]), build_pairs(SPACE, history[24:])
    predicted, _ = fit(before, ModelSettings(), 3).predict(now.blocks)
    assert found[-1].tau == pytest.approx(compute_kendall(predicted, now.scores))
    assert found[-1].tau > 0.5


def test_later_rounds_do_not_change_a_correlation() -> None:
    history = measured(5)
    early, late = judged(history[:32]), judged(history)
    assert [e.tau for e in early] == pytest.approx([e.tau for e in late[:-1]])
    last = judged(history, last=2)
    assert [e.round for e in last] == [3, 4]


def test_split_parts_the_pairs() -> None:
    pairs = build_pairs(SPACE, measured(2, 10))
    first, second = split_pairs(pairs, 0.7, np.random.default_rng(0))
    assert (len(first), len(second)) == (14, 6)
    assert sorted([*first.scores, *second.scores]) == sorted(pairs.scores)


class Fixed:
    """Predicts what it was given."""

    def __init__(self, values: list[float]) -> None:
        self.values = np.array(values)

    def predict(self, blocks: object) -> tuple[np.ndarray, np.ndarray]:
        return self.values, 0 * self.values


def test_figures_take_no_account_of_offsets() -> None:
    pairs = TrainingPairs({"levels": np.zeros((4, 1))}, np.array([1.0, 3.0, 11.0, 13.0]),
                  np.array([0, 0, 1, 1]))  # fmt: skip
    exact = judge(Fixed([0.0, 2.0, -7.0, -5.0]), pairs)
    assert (exact.r2, exact.mae, exact.tau, exact.n) == (1.0, 0.0, 1.0, 4)
    half = judge(Fixed([0.0, 1.0, 0.0, 1.0]), pairs)
    assert half.r2 == pytest.approx(0.75)
    assert half.mae == pytest.approx(0.5)
    assert judge(Fixed([1.0, 0.0, 1.0, 0.0]), pairs).tau == -1
