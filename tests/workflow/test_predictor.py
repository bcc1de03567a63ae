"""A run's measurements as a data set, without a model: the run directory is made by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from sparsity_search.errors import ConfigError, RunMismatchError
from sparsity_search.runs.directory import RunDirectory
from sparsity_search.runs.record import RunRecord
from sparsity_search.searchers.bases.dataset import read_dataset
from sparsity_search.searchers.bases.models import ModelSettings
from sparsity_search.searchers.bases.training import build_pairs, drop_failed
from sparsity_search.searchers.random import RandomSearcher
from sparsity_search.spaces.parameters import stepped
from sparsity_search.study.study import Limits, Study
from sparsity_search.testing.problems import toy_parametric
from sparsity_search.trials.history import Score
from sparsity_search.trials.ladder import Ladder, Rung
from sparsity_search.trials.storages import open_journal
from sparsity_search.trials.store import Store
from sparsity_search.workflow.predictor import learn, load_trees, read_spaces
from tests.helpers.json_files import change_json
from tests.helpers.searched_runs import searched_run

XGBOOST = ModelSettings(model="xgboost", members=2, trees=5)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return searched_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def run_dir(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "run")


def test_the_data_set_is_what_was_measured(run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "predictor.json"
    found = learn(run_dir, ModelSettings(), out)
    record = RunRecord.read(run_dir)
    alive = drop_failed(record.measurements)
    assert len(found.dataset) == len(alive) < len(record.measurements), "one failed"
    data = read_dataset(out)
    assert list(data.scores) == [m.score.value for m in alive]
    assert list(data.fidelities) == [m.fidelity for m in alive]
    pairs, expected = (
        data.pairs(read_spaces(RunDirectory(run_dir))[0]),
        build_pairs(read_spaces(RunDirectory(run_dir))[0], alive),
    )
    assert pairs.blocks["levels"] == pytest.approx(expected.blocks["levels"])
    assert data.facts["space"] == "per_linear"
    assert "model" not in json.loads(out.read_text())


def test_figures(run_dir: Path) -> None:
    found = learn(run_dir, ModelSettings())
    assert found.figures.n == round(0.3 * len(found.dataset))
    assert found.figures.tau > 0.3
    assert [entry.round for entry in found.rounds] == [2, 3, 4, 5, 6], "one start teaches nothing"


def test_trees_are_written_and_read(run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "predictor.json"
    learn(run_dir, XGBOOST, out)
    learn(run_dir, XGBOOST, tmp_path / "again.json")
    assert out.read_bytes() == (tmp_path / "again.json").read_bytes()
    pairs = read_dataset(out).pairs(read_spaces(RunDirectory(run_dir))[0])
    predicted, _ = load_trees(out).predict(pairs.blocks)
    assert np.corrcoef(predicted, pairs.scores)[0, 1] > 0.3
    learn(run_dir, ModelSettings(), out)
    with pytest.raises(ConfigError, match="no trees"):
        load_trees(out)


def test_importance_finds_the_unit_that_matters_most(run_dir: Path) -> None:
    """The score is a sum over units with known weights, so the heaviest must stand out."""
    found = learn(run_dir, ModelSettings(model="xgboost"))
    weights = np.exp(np.random.default_rng(0).normal(0, 1.5, len(found.dataset.layout)))
    assert list(found.importance) == [unit.name for unit in found.dataset.layout]
    assert sum(found.importance.values()) == pytest.approx(1.0)
    shares = np.array(list(found.importance.values()))
    assert shares.argmax() == weights.argmax()
    assert shares.max() > 10 / len(shares)
    assert not learn(run_dir, ModelSettings()).importance, "ridge has no splits"


def test_the_run_is_not_changed(run_dir: Path, original: Path) -> None:
    learn(run_dir, ModelSettings())
    for file in original.iterdir():
        assert (run_dir / file.name).read_bytes() == file.read_bytes()


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return searched_run(tmp_path_factory.mktemp("staged") / "run", rounds=3, stages=3)


def test_all_stages_are_learned(staged: Path, tmp_path: Path) -> None:
    """Scores of the later ones are ten times as high: another group, or nothing is predicted."""
    found = learn(staged, ModelSettings(), tmp_path / "predictor.json")
    record = RunRecord.read(staged)
    alive = drop_failed(record.measurements)
    assert list(found.dataset.scores) == [m.score.value for m in alive]
    assert sorted({*found.dataset.stages}) == [1, 2, 3]
    assert found.figures.tau > 0.3
    assert [entry.round for entry in found.rounds] == [2, 3, 5, 6, 7, 9, 10, 11]
    pairs = read_dataset(tmp_path / "predictor.json").pairs(read_spaces(RunDirectory(staged))[0])
    assert set(pairs.groups) == set(range(6)), "two rungs in each of three stages"


def test_later_stages_have_the_profiles_that_were_measured(staged: Path) -> None:
    """Their scores are those of the toy objective, whatever their levels mean."""
    data = learn(staged, ModelSettings()).dataset
    weights = np.exp(np.random.default_rng(0).normal(0, 1.5, len(data.layout)))
    rows = zip(data.profiles, data.scores, data.fidelities, data.stages, strict=True)
    for profile, score, fidelity, stage in rows:
        value = float(weights @ np.exp(3 * profile.sparsities)) * 10**stage / fidelity.tokens
        assert score == pytest.approx(value)


def test_a_stage_that_has_only_begun(staged: Path, tmp_path: Path) -> None:
    """It may lie around any candidate, and has measured nothing yet."""
    run = shutil.copytree(staged, tmp_path / "run")
    record = RunRecord.read(run)
    space = read_spaces(RunDirectory(run))[0]
    start = space.profile(record.measurements[7].candidate)
    names = ["search", f"search-stage2-{space.refined(start).digest}"]
    RunDirectory(run).write_stages(names, [{"uniform": space.base}, {"searched": start}])
    assert set(learn(run, ModelSettings()).dataset.stages) == {1}


def test_a_study_of_another_space(staged: Path, tmp_path: Path) -> None:
    run = shutil.copytree(staged, tmp_path / "run")
    change_json(run / "stages.json", studies=["search", "search-stage2-0123456789abcdef"])
    with pytest.raises(RunMismatchError, match="another space"):
        learn(run, ModelSettings())


def test_stages_whose_starts_are_not_recorded(staged: Path, tmp_path: Path) -> None:
    run = shutil.copytree(staged, tmp_path / "run")
    (run / "starts.json").unlink()
    with pytest.raises(RunMismatchError, match="search anew"):
        learn(run, ModelSettings())


def test_a_space_that_has_changed(run_dir: Path) -> None:
    change_json(run_dir / "run.json", fingerprint={"space": "0123456789abcdef"})
    with pytest.raises(RunMismatchError, match="not what it was"):
        learn(run_dir, ModelSettings())


def test_candidates_of_another_space(run_dir: Path) -> None:
    run = json.loads((run_dir / "run.json").read_text())
    change_json(
        run_dir / "run.json", config={**run["config"], "space": "per_block"}, fingerprint={}
    )
    with pytest.raises(RunMismatchError, match="not in its space"):
        learn(run_dir, ModelSettings())


def settings_run(folder: Path, *, keep: bool = True) -> Path:
    """Write a run of random settings of a toy allocator on a toy objective."""
    run = searched_run(folder, rounds=0)
    facts = json.loads((run / "run.json").read_text())
    on = read_spaces(RunDirectory(run))[0]
    space = toy_parametric(stepped("tilt", -1.0, 1.0, 0.02), of_levels=on, limit=0.85)
    config = {**facts["config"], "space": "ramp_slope"}
    change_json(
        run / "run.json", config=config, study="settings", fingerprint={"parameters": space.digest}
    )
    change_json(run / "stages.json", studies=["settings"])
    Study(
        space=space,
        searcher=RandomSearcher(),
        objective=lambda profile, fidelity, known=None: Score(profile.sparsities[0] ** 2, ()),
        ladder=Ladder(candidates=8, rungs=(Rung(512, 1),)),
        store=Store(open_journal(run / "journal.log"), "settings", {}, space if keep else None),
    ).run(Limits(rounds=3))
    return run


def test_settings_are_learned_by_the_profiles_they_gave(tmp_path: Path) -> None:
    run = settings_run(tmp_path / "run")
    found = learn(run, ModelSettings(), tmp_path / "predictor.json")
    record = RunRecord.read(run)
    assert len(found.dataset) == len(drop_failed(record.measurements)) < len(record.measurements)
    for profile, score in zip(found.dataset.profiles, found.dataset.scores, strict=True):
        assert score == profile.sparsities[0] ** 2
    assert found.figures.tau > 0.7, "one number decides"
    data, space = read_dataset(tmp_path / "predictor.json"), read_spaces(RunDirectory(run))[0]
    assert space.roles[0] == "q"
    assert data.pairs(space).blocks["levels"].shape == (len(data), space.n_genes)


def test_settings_whose_profiles_were_not_kept(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="without the profiles"):
        learn(settings_run(tmp_path / "run", keep=False), ModelSettings())


def test_too_few_measurements(tmp_path: Path) -> None:
    run = searched_run(tmp_path / "run", rounds=0)
    with pytest.raises(ConfigError, match="too few"):
        learn(run, ModelSettings())


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run directory"):
        learn(tmp_path, ModelSettings())
