"""Searches in stages, with hints and another pruner at the end, on a tiny random model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsity_search.report import RunRecord
from sparsity_search.searchers.bases.models import ModelSettings
from sparsity_search.utils.reading import read_json
from sparsity_search.workflow.predictor import learn
from tests.helpers.json_files import change_json

from .conftest import SMALL, Outcome

Cli = Callable[..., Outcome]

STAGES = ("--stages", 2, "--hints", "gradients,layer_error", "--finalise", "sparsegpt")


def search(cli: Cli, model: Path, out: Path, *more: object, rounds: int = 3) -> Outcome:
    return cli(
        "search", model, "--sparsity", 0.6, "--rounds", rounds, "--out", out,
        "--dtype", "float32", *SMALL, *more,
    )  # fmt: skip


@pytest.fixture
def finished(cli: Cli, model: Path, tmp_path: Path) -> Path:
    outcome = search(cli, model, tmp_path / "run", *STAGES)
    assert outcome.code == 0, outcome.err
    return tmp_path / "run"


def plain(run: Path) -> list[Any]:
    """Return what was measured, without times."""
    found = RunRecord.read(run).measurements
    return [(m.round, m.rung, m.candidate, m.fidelity, m.score) for m in found]


def same_files(first: Path, second: Path, name: str) -> bool:
    return (first / name).read_bytes() == (second / name).read_bytes()


def test_each_stage_searches_around_the_last_result(finished: Path) -> None:
    record = RunRecord.read(finished)
    assert {m.round for m in record.measurements} == set(range(8))
    # the second stage starts from one candidate, which is its centre
    start = [m.candidate for m in record.measurements if m.round == 4]
    assert len(start) == 1
    assert not any(start[0])
    results = read_json(finished / "results.json")
    assert results["search"]["rounds"] == 6
    assert results["search"]["measurements"] == len(record.measurements)
    assert set(learn(finished, ModelSettings()).dataset.stages) == {1, 2}
    removed = {row["removed"] for row in results["rows"] if row["name"] != "dense"}
    assert removed == {16589}


def test_hints_are_kept_for_each_stage(finished: Path) -> None:
    files = sorted(str(f.relative_to(finished)) for f in (finished / "hints").rglob("*.json"))
    assert files == [
        f"hints/stage{stage}/{name}.json"
        for stage in (1, 2)
        for name in ("gradients", "layer_error")
    ]
    digests = [read_json(finished / file)["space"] for file in files]
    assert digests[0] == digests[1] != digests[2] == digests[3]


def test_resumed_equals_uninterrupted(
    cli: Cli, model: Path, tmp_path: Path, finished: Path
) -> None:
    stopped = tmp_path / "stopped"
    for rounds in (0, 1, 3):
        # limits may change between sessions: a stage that was cut short goes on
        assert search(cli, model, stopped, *STAGES, rounds=rounds).code == 0
    assert plain(stopped) == plain(finished)
    assert same_files(stopped, finished, "profile.json")


def test_a_finished_search_is_not_measured_again(cli: Cli, model: Path, finished: Path) -> None:
    before = plain(finished)
    outcome = search(cli, model, finished, *STAGES)
    assert outcome.code == 0
    assert "build supernet" not in outcome.out + outcome.err
    assert plain(finished) == before


def test_the_last_pruner_may_change_afterwards(cli: Cli, model: Path, finished: Path) -> None:
    first = read_json(finished / "profile.json")
    assert first["pruner"]["name"] == "sparsegpt"
    before = (finished / "checkpoint" / "model.safetensors").read_bytes()
    assert search(cli, model, finished, *STAGES[:4], "--finalise", "wanda+refit").code == 0
    second = read_json(finished / "profile.json")
    assert second["pruner"] == {"name": "refit", "mask": {"name": "wanda"}}
    assert (finished / "checkpoint" / "model.safetensors").read_bytes() != before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--hints", "gradientz"), "unknown hint 'gradientz'"),
        (("--hints", "nowhere.json"), "cannot read nowhere.json"),
        (("--finalise", "flap"), "--finalise flap removes"),
        (("--stages", 0), "study.stages"),
        (
            ("--stages", 2, "--space", "two_of_four", "--pattern", "2:4"),
            "no step that could be halved",
        ),
    ],
)
def test_bad_options(
    cli: Cli, model: Path, tmp_path: Path, options: tuple[object, ...], said: str
) -> None:
    outcome = search(cli, model, tmp_path / "run", *options)
    assert outcome.code == 2
    assert said in outcome.err
    assert not (tmp_path / "run").exists()


def test_hints_of_another_model_are_refused(
    cli: Cli, model: Path, tmp_path: Path, finished: Path
) -> None:
    scores = tmp_path / "scores.json"
    outcome = cli("sensitivity", model, "--sensitivity", "layer_error", "--out", scores, *SMALL)
    assert outcome.code == 0, outcome.err
    *layout, last = json.loads(scores.read_text())["layout"]
    units = json.loads(scores.read_text())["units"]
    units.pop(last["name"])
    assert search(cli, model, tmp_path / "good", "--hints", scores, rounds=1).code == 0
    change_json(scores, layout=layout, units=units)
    outcome = search(cli, model, tmp_path / "bad", "--hints", scores, rounds=1)
    assert outcome.code == 2
    assert "of another model" in outcome.err
    assert not (tmp_path / "bad").exists()
