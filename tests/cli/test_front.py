"""One search for several budgets, on a tiny random model."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from sparsity_search.config.load import load_config
from sparsity_search.engine.monitor import Monitor
from sparsity_search.trials.history import Measurement
from sparsity_search.utils.reading import read_json
from sparsity_search.workflow.front import search_front
from sparsity_search.workflow.search import search

from .conftest import SMALL, Outcome

Cli = Callable[..., Outcome]


def front(cli: Cli, model: Path, out: Path, *more: object) -> Outcome:
    return cli(
        "front", model, "--sparsity", "0.6,0.4", "--rounds", 2, "--out", out, "--set",
        "model.dtype=float32", *SMALL, *more,
    )  # fmt: skip


def test_neighbours_start_each_other(cli: Cli, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "front"
    outcome = front(cli, model, out)
    assert outcome.code == 0, outcome.err
    found = read_json(out / "front.json")
    assert [(row["run"], row["name"]) for row in found["rows"]] == [
        *(("0.4", name) for name in ("uniform", "cfsp", "searched")),
        *(("0.6", name) for name in ("uniform", "cfsp", "0.4-profile", "searched")),
    ]
    moved = read_json(out / "0.6" / "profiles" / "0.4-profile.json")
    assert moved["sparsity"] == pytest.approx(0.6, abs=1e-4)
    best = {row["run"]: row["name"] for row in found["rows"] if row["on_front"]}
    for run in ("0.4", "0.6"):
        assert read_json(out / run / "results.json")["shipped"] == best[run]
    volumes = [volume for _, volume in found["growth"]]
    assert volumes == sorted(volumes)
    assert found["hypervolume"] > 0
    rows = list(csv.DictReader((out / "front.csv").open()))
    assert [row["target"] for row in rows] == ["0.4"] * 3 + ["0.6"] * 4
    assert (out / "front.png").read_bytes().startswith(b"\x89PNG")
    assert "on the front" in outcome.out
    before = (out / "front.json").read_bytes()
    assert front(cli, model, out).code == 0
    assert (out / "front.json").read_bytes() == before


def test_the_time_of_steps_is_that_of_one_search(model: Path, tmp_path: Path) -> None:
    monitor = Monitor()
    monitor.seconds["of another search"] = 1.0
    given = {"model.name": str(model), "budget.sparsity": 0.5, "study.rounds": 0}
    search(load_config(None, given, SMALL[1::2]), tmp_path / "run", monitor=monitor)
    steps = read_json(tmp_path / "run" / "results.json")["seconds"]
    assert "search" in steps
    assert "of another search" not in steps


@pytest.mark.parametrize("targets", ["0.5", "0.5,0.5", "0.5,1.5", "0.5,0.50000001"])
def test_bad_targets(cli: Cli, model: Path, tmp_path: Path, targets: str) -> None:
    outcome = cli("front", model, "--sparsity", targets, "--out", tmp_path / "front")
    assert outcome.code == 2
    assert not (tmp_path / "front").exists()


class Stopping(Monitor):
    """Asks to stop at the first measurement."""

    asked = False

    def measured(self, measurement: Measurement, top: int) -> None:
        self.asked = True

    def stopped(self) -> bool:
        return self.asked


def test_a_front_that_is_stopped_begins_no_other_budget(model: Path, tmp_path: Path) -> None:
    config = load_config(None, {"model.name": str(model), "study.rounds": 2}, [*SMALL[1::2]])
    done = search_front(config, [0.4, 0.6], tmp_path / "front", monitor=Stopping())
    assert not done
    assert (tmp_path / "front" / "0.4" / "results.json").exists()
    assert not (tmp_path / "front" / "0.6").exists()
