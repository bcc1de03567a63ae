"""Searches over an allocator's settings, through the command line on a tiny random model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import yaml

from sparsity_search.report import RunRecord
from sparsity_search.runs.directory import RunDirectory
from sparsity_search.searchers.bases.models import ModelSettings
from sparsity_search.trials.storages import open_journal
from sparsity_search.workflow.predictor import learn

from .conftest import SMALL, Outcome

Cli = Callable[..., Outcome]


def search(cli: Cli, model: Path, out: Path, *more: object) -> Outcome:
    return cli(
        "search", model, "--sparsity", 0.6, "--rounds", 2, "--out", out, "--dtype", "float32",
        "--searcher", "optuna", *SMALL, *more,
    )  # fmt: skip


def trials(out: Path) -> list[optuna.trial.FrozenTrial]:
    (name,) = RunDirectory(out).read_studies()
    return optuna.load_study(study_name=name, storage=open_journal(out / "journal.log")).trials


@pytest.mark.parametrize("space", ["owl_grid", "depth_spline"])
def test_a_search_over_settings(cli: Cli, model: Path, tmp_path: Path, space: str) -> None:
    outcome = search(cli, model, tmp_path / "run", "--space", space)
    assert outcome.code == 0, outcome.err
    names = {"owl_grid": {"m", "spread"}, "depth_spline": {f"knots.{i}" for i in (0, 1, 3, 4)}}
    found = trials(tmp_path / "run")
    assert len(found) > 8
    assert all(set(trial.params) == names[space] for trial in found)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {row["name"] for row in results["rows"]} == {"dense", "uniform", "cfsp", "searched"}
    last = [t for t in found if t.user_attrs["measurement"]["rung"] == 1]
    assert results["search"]["parameters"] == min(last, key=lambda trial: trial.value).params
    record = RunRecord.read(tmp_path / "run")
    assert record.initial_scores == {"default settings": found[0].value}
    data = learn(tmp_path / "run", ModelSettings()).dataset
    assert list(data.scores) == [trial.value for trial in found]
    assert record.profiles["searched"] in data.profiles


def test_owl_is_the_same_whatever_was_switched_before(
    cli: Cli, model: Path, tmp_path: Path
) -> None:
    """One setting alone gives the profile that it gives among others."""

    def space(name: str, **parameters: object) -> str:
        file = {"version": 1, "description": "x", "allocator": "owl", "parameters": parameters}
        (tmp_path / name).write_text(yaml.safe_dump(file))
        return str(tmp_path / name)

    many = space("many.yaml", spread={"values": [0.02, 0.05, 0.2]}, m={"values": [1.5, 3, 5]})
    assert search(cli, model, tmp_path / "many", "--space", many).code == 0
    best = min((t for t in trials(tmp_path / "many") if t.value), key=lambda t: t.value)
    by_params = {}
    for trial in trials(tmp_path / "many"):
        key = tuple(trial.params.values()), trial.user_attrs["measurement"]["tokens"]
        by_params[key] = trial.value
    one = space(
        "one.yaml", spread={"values": [best.params["spread"]]}, m={"values": [best.params["m"]]}
    )
    assert search(cli, model, tmp_path / "one", "--space", one).code == 0
    (alone, *_) = trials(tmp_path / "one")
    assert alone.value == by_params[tuple(alone.params.values()), 64]


def test_a_resumed_search_equals_another(cli: Cli, model: Path, tmp_path: Path) -> None:
    for out, rounds in (("a", 1), ("a", 2), ("b", 2)):
        assert (
            search(cli, model, tmp_path / out, "--space", "role_ratios", "--rounds", rounds).code
            == 0
        )
    one, other = ([t.user_attrs["candidate"] for t in trials(tmp_path / out)] for out in "ab")
    assert one == other
    first, second = ((tmp_path / out / "profile.json").read_text() for out in "ab")
    assert first == second


def test_refused_settings_are_failures(cli: Cli, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "version": 1,
                "description": "x",
                "allocator": "owl",
                "parameters": {"spread": {"values": [0.05, 0.1, 1.5]}, "m": {"values": [3, 5]}},
            }
        )
    )
    outcome = search(cli, model, tmp_path / "run", "--space", file)
    assert outcome.code == 0, outcome.err
    failed = [t for t in trials(tmp_path / "run") if t.state.name == "FAIL"]
    assert failed
    assert {t.params["spread"] for t in failed} == {1.5}


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({"allocator": "ow"}, (), "did you mean 'owl'"),
        ({"parameters": {"n": {"values": [1]}}}, (), "no setting 'n'"),
        ({"parameters": {"m": {"values": [-1.0]}}}, (), "m must be positive"),
        ({}, ("--set", "study.stages=2"), "leave out --stages"),
    ],
)
def test_faults_are_told_before_any_work(
    cli: Cli,
    model: Path,
    tmp_path: Path,
    changes: dict[str, object],
    more: tuple[str, ...],
    message: str,
) -> None:
    file = {
        "version": 1,
        "description": "x",
        "allocator": "owl",
        "parameters": {"m": {"values": [3]}},
    }
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({**file, **changes}))
    outcome = search(cli, model, tmp_path / "run", "--space", tmp_path / "space.yaml", *more)
    assert outcome.code != 0
    assert message in outcome.err
    assert not (tmp_path / "run").exists()


def test_inspect(cli: Cli, model: Path) -> None:
    assert cli("inspect", model, "--space", "owl_grid").code == 0
