"""Data sets: there and back, and to other budgets and spaces."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sparsity_search.errors import ConfigError
from sparsity_search.searchers.bases.dataset import Dataset, read_dataset
from sparsity_search.searchers.predictor import PredictorSearcher
from sparsity_search.spaces.levels import SearchSpace
from sparsity_search.testing.problems import (
    SAVINGS,
    SeparableProblem,
    build_uneven_spaces,
    toy_history,
    toy_parametric,
    toy_space,
)
from sparsity_search.trials.history import Fidelity
from sparsity_search.utils.files import write_json

SPACES = {"equal": toy_space(), "tied": toy_space(genes=((0, 4), (1,), (2, 3), (5,))),
          **build_uneven_spaces()}  # fmt: skip


def some(space: SearchSpace, n: int = 12) -> Dataset:
    rng = np.random.default_rng(0)
    profiles = [space.profile(space.sample(rng, 1.5)) for _ in range(n)]
    problem = SeparableProblem(space)
    scores = [problem.exact(profile) for profile in profiles]
    return Dataset(space.layout, profiles, scores, [Fidelity(64, i % 2) for i in range(n)])


@pytest.mark.parametrize("name", SPACES)
def test_there_and_back(name: str) -> None:
    data = some(SPACES[name])
    again = Dataset.from_json(json.loads(json.dumps(data.to_json())))
    assert again.layout == data.layout
    assert (again.profiles, again.scores) == (data.profiles, data.scores)
    assert again.fidelities == data.fidelities


@pytest.mark.parametrize("name", SPACES)
def test_a_candidate_has_its_own_levels(name: str) -> None:
    space = SPACES[name]
    rng = np.random.default_rng(1)
    candidates = [space.sample(rng, 1.5) for _ in range(10)]
    found = space.real_levels([space.profile(c) for c in candidates])
    assert found == pytest.approx(np.array(candidates), abs=1e-9)


def test_another_budget_moves_the_levels() -> None:
    """A level is 10 of 100 weights: 50% lies two levels below 70%, beyond the reach too."""
    half, more = toy_space(target=0.5), toy_space(target=0.7, reach=1)
    rng = np.random.default_rng(0)
    candidates = [half.sample(rng, 1.5) for _ in range(8)]
    found = more.real_levels([half.profile(c) for c in candidates])
    assert found == pytest.approx(np.array(candidates) - 2)


def test_pairs_keep_fidelities_apart() -> None:
    space = SPACES["equal"]
    pairs = some(space).pairs(space)
    assert pairs.groups.tolist() == [0, 1] * 6
    assert pairs.scores == pytest.approx(np.log(some(space).scores))


def test_pairs_keep_stages_apart() -> None:
    """Another supernet, another offset: a score of one stage says nothing of the other's."""
    space = SPACES["equal"]
    data = replace(some(space, 6), stages=[1, 1, 1, 2, 2, 2])
    assert data.pairs(space).groups.tolist() == [0, 1, 0, 2, 3, 2]
    again = Dataset.from_json(json.loads(json.dumps(data.to_json())))
    assert again.stages == data.stages
    assert again.pairs(space).groups.tolist() == [0, 1, 0, 2, 3, 2]
    assert again.digest == data.digest != some(space, 6).digest


def test_another_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="the same model"):
        some(toy_space()).pairs(toy_space(*(100,) * 7))


def test_a_space_of_parameters_is_refused() -> None:
    with pytest.raises(ConfigError, match="genes are units"):
        some(toy_space()).pairs(toy_parametric())


def test_options_need_patterns() -> None:
    linears = (144, 48, 144, 384)
    options = toy_space(*linears, options=SAVINGS, target=0.3, reach=2)
    with pytest.raises(ConfigError, match="patterns"):
        some(toy_space(*linears, step=48)).pairs(options)


@pytest.mark.parametrize(
    "change",
    [{"format": 2}, {"kind": "profile"}, {"pairs": [{"removed": [1]}]}, {"digest": "0"},
     {"layout": []}, {"pairs": [{"removed": [50] * 6, "score": "x", "tokens": 1, "subset": 0}]}],
)  # fmt: skip
def test_corrupt_files(change: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "predictor.json"
    write_json(path, {**some(toy_space()).to_json(), **change})
    with pytest.raises(ConfigError, match=r"predictor\.json"):
        read_dataset(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        PredictorSearcher(dataset=str(tmp_path / "none.json"))
    (tmp_path / "text.json").write_text("no JSON")
    with pytest.raises(ConfigError, match=r"text\.json"):
        PredictorSearcher(dataset=str(tmp_path / "text.json"))


def test_a_file_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "predictor.json"
    write_json(path, some(toy_space(), 3).to_json())
    assert len(read_dataset(path)) == 3
    write_json(path, some(toy_space(), 5).to_json())
    assert len(read_dataset(path)) == 5


def test_pairs_of_another_budget_guide_the_first_round(tmp_path: Path) -> None:
    """Before anything is learned from the search itself, the data set already ranks."""
    space, other = toy_space(*(100,) * 8, target=0.6), toy_space(*(100,) * 8, target=0.5)
    path = tmp_path / "predictor.json"
    write_json(path, some(other, 80).to_json())
    problem = SeparableProblem(space)
    history = toy_history(PredictorSearcher(), problem, rounds=0)

    def mean(searcher: PredictorSearcher) -> float:
        asked = searcher.ask(space, history, 16, np.random.default_rng(0))
        return float(np.mean([problem.exact(space.profile(c)) for c in asked]))

    start = problem.exact(space.base)
    assert (
        mean(PredictorSearcher(dataset=str(path), random_share=0.0))
        < start
        < mean(PredictorSearcher())
    )
