from __future__ import annotations

import logging
import math
import subprocess
import sys
import warnings
from collections.abc import Sequence

import numpy as np
import optuna
import pytest

from sparsity_search.errors import ConfigError
from sparsity_search.searchers.optuna import OptunaSearcher, select_fidelity
from sparsity_search.spaces.levels import Candidate
from sparsity_search.spaces.parameters import Parameter, stepped
from sparsity_search.spaces.parametric import ParametricSpace
from sparsity_search.testing.problems import (
    SeparableProblem,
    toy_history,
    toy_parametric,
    toy_space,
)
from sparsity_search.trials.history import Fidelity, History, Measurement, Score
from sparsity_search.utils.random import create_generator

SPACE = toy_parametric(stepped("tilt", -1.0, 1.0, 0.0625), stepped("knots.0", -1.0, 1.0, 0.0625))


def measured(
    values: dict[Candidate, float], tokens: int = 64, subset: int = 0
) -> list[Measurement]:
    return [
        Measurement(
            round=0,
            rung=0,
            candidate=candidate,
            fidelity=Fidelity(tokens, subset),
            score=Score(value, (value,)),
        )
        for candidate, value in values.items()
    ]


def bowl(space: ParametricSpace, best: Candidate, n: int = 24) -> dict[Candidate, float]:
    """Return the squared distance from ``best`` of random candidates."""
    rng = create_generator(0, "bowl")
    found = {space.sample(rng) for _ in range(n)}
    return {c: float(np.square(np.subtract(c, best)).sum()) for c in sorted(found)}


def asked(sampler: str, history: History, n: int = 6, seed: int = 0) -> Sequence[Candidate]:
    return OptunaSearcher(sampler=sampler).ask(SPACE, history, n, create_generator(seed, "ask"))


def nearer(found: Sequence[Candidate], best: Candidate) -> float:
    """Return how far candidates are from ``best``, relative to random ones."""
    rng = create_generator(0, "random")
    random = [SPACE.sample(rng) for _ in range(200)]
    own, other = (np.abs(np.subtract(c, best)).sum(axis=1).mean() for c in (found, random))
    return float(own / other)


@pytest.mark.parametrize(("sampler", "most"), [("tpe", 0.5), ("nsgaii", 0.8)])
def test_learns_where_it_is_good(sampler: str, most: float) -> None:
    found = asked(sampler, History(measured(bowl(SPACE, (24, 8), 80))), 24)
    assert nearer(found, (24, 8)) < most


def test_gaussian_process() -> None:
    history = History(measured(bowl(SPACE, (24, 8))))
    found = asked("gp", history, 2)
    assert nearer(found, (24, 8)) < 0.6
    assert asked("gp", history, 1) == found[:1]


@pytest.mark.parametrize("sampler", ["nsgaii", "qmc", "random"])
def test_pure_distinct_and_new(sampler: str) -> None:
    history = History(measured(bowl(SPACE, (24, 8))))
    found = asked(sampler, history)
    assert list(asked(sampler, history)) == list(found)
    assert list(asked(sampler, history, seed=1)) != list(found)
    assert len(set(found)) == 6
    assert not set(found) & history.seen
    assert all(candidate in SPACE for candidate in found)


def test_quasi_random_fills_evenly() -> None:
    history = History(measured({(0, 0): 1.0}))
    found = np.array(asked("qmc", history, 16))
    # of 16 points of a Sobol set, four lie in each quarter of each axis
    quarters = found * 4 // 33
    for axis in range(2):
        counts = np.bincount(quarters[:, axis], minlength=4)
        assert counts.min() >= 3


def test_random_until_startup() -> None:
    values = bowl(SPACE, (24, 8), 12)
    few, many = History(measured(dict(list(values.items())[:9]))), History(measured(values))
    rng = create_generator(0, "ask")
    rng.integers(2**31)
    assert asked("tpe", few) == [SPACE.sample(rng) for _ in range(6)]
    assert OptunaSearcher(startup=9).ask(SPACE, few, 6, create_generator(0, "ask")) != asked(
        "tpe", few
    )
    assert asked("tpe", many) != asked("tpe", few)


def test_learns_from_one_fidelity() -> None:
    values = bowl(SPACE, (24, 8))
    clean = measured(values)
    misleading = measured({c: -v for c, v in list(values.items())[:9]}, tokens=4096)
    assert asked("tpe", History(clean + misleading)) == asked("tpe", History(clean))
    enough = measured({c: -v for c, v in list(values.items())[:10]}, tokens=4096)
    assert asked("tpe", History(clean + enough)) != asked("tpe", History(clean))


def test_which_fidelity() -> None:
    def history(*groups: tuple[int, int, int]) -> History:
        return History(
            [
                m
                for tokens, subset, n in groups
                for m in measured({(i, 0): 0.0 for i in range(n)}, tokens, subset)
            ]
        )

    def chosen(*groups: tuple[int, int, int]) -> tuple[Fidelity, int]:
        found = select_fidelity(history(*groups), 5)
        assert len({m.fidelity for m in found}) == 1
        return found[0].fidelity, len(found)

    assert chosen((64, 0, 9), (256, 0, 5)) == (Fidelity(256), 5)
    assert chosen((64, 0, 9), (256, 0, 4)) == (Fidelity(64), 9)
    assert chosen((64, 0, 3), (256, 0, 2)) == (Fidelity(64), 3)
    assert chosen((64, 0, 3), (256, 0, 3)) == (Fidelity(256), 3)
    assert chosen((64, 1, 6), (64, 2, 6), (64, 0, 9)) == (Fidelity(64, 2), 6)
    assert select_fidelity(History(), 5) == []
    twice = history((64, 0, 3), (64, 0, 3))
    assert len(select_fidelity(twice, 5)) == 3


def test_more_than_genes_are_enough() -> None:
    space = toy_space(*(100,) * 16)
    rng = create_generator(0, "x")
    low = {space.sample(rng): float(i) for i in range(30)}
    high = measured({c: -v for c, v in list(low.items())[:16]}, tokens=4096)
    searcher, rng = OptunaSearcher(), create_generator(0, "ask")
    found = searcher.ask(space, History(measured(low) + high), 3, rng)
    assert found == searcher.ask(space, History(measured(low)), 3, create_generator(0, "ask"))


@pytest.mark.parametrize("sampler", ["tpe", "nsgaii"])
def test_failures_are_avoided(sampler: str) -> None:
    values = bowl(SPACE, (16, 16), 60)
    failed = {c: math.nan if c[0] > 16 else v for c, v in values.items()}
    found = np.array(asked(sampler, History(measured(failed)), 16))
    assert (found[:, 0] <= 16).mean() > 0.6


def test_unordered_values_are_categories() -> None:
    space = toy_parametric(
        Parameter("shape", tuple("abcdefghi")), Parameter("knots.0", tuple(range(9)))
    )
    history = History(measured({c: float(c[0] not in (0, 8)) for c in bowl(space, (0, 0), 60)}))
    found = np.array(OptunaSearcher().ask(space, history, 6, create_generator(0, "ask")))
    # a category can be good at both ends; the numbers between are not
    assert np.isin(found[:, 0], (0, 8)).mean() > 0.5


def test_small_grids_are_completed() -> None:
    space = toy_parametric(stepped("tilt", -1.0, 1.0, 0.125))  # 17
    history = toy_history(OptunaSearcher(), SeparableProblem(space), rounds=12)
    assert len(history.seen) == 17


def test_is_silent() -> None:
    said: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = said.append  # type: ignore[method-assign]
    before, logger = optuna.logging.get_verbosity(), logging.getLogger("optuna")
    optuna.logging.set_verbosity(optuna.logging.INFO)
    logger.addHandler(handler)
    try:
        history = History(measured(bowl(SPACE, (24, 8), 12)))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for sampler in ("tpe", "qmc", "nsgaii"):
                asked(sampler, history, 2)
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
    finally:
        logger.removeHandler(handler)
        optuna.logging.set_verbosity(before)
    assert not said


def test_needs_no_torch() -> None:
    code = (
        "import sys; from sparsity_search.searchers.optuna import OptunaSearcher\n"
        "from sparsity_search.testing.problems import *\n"
        "toy_history(OptunaSearcher(startup=2), SeparableProblem(toy_parametric()))\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match="sampler 'tpee': did you mean 'tpe'"):
        OptunaSearcher(sampler="tpee")
    with pytest.raises(ConfigError, match="'cmaes'"):
        OptunaSearcher(sampler="cmaes")
    with pytest.raises(ConfigError, match="startup must be at least 2"):
        OptunaSearcher(startup=1)
