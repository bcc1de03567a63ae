"""Searches by a plan: its steps, its time, and a stop in the middle."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import SMALL, Outcome

pytestmark = pytest.mark.usefixtures("any_model")

Cli = Callable[..., Outcome]

#: A plan of counts: without minutes the same command always gives the same profile.
PLAN = """
about: for tests
pruner: wanda
confidence: 0.6
steps:
  - starts: [owl]
  - allocate: gauss_newton
    settings: {start: best, steps: 1}
    repeat: 2
  - search:
      hints: [gradients]
      study: {rounds: 2}
  - rebuild: sparsegpt
"""


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    file = tmp_path / "plan.yaml"
    file.write_text(PLAN)
    return file


def arguments(model: Path, plan: Path, out: Path) -> list[object]:
    return [
        *("search", model, "--sparsity", 0.6, "--plan", plan, "--out", out),
        *("--dtype", "float32", *SMALL),
    ]


def read(out: Path, name: str) -> Any:
    return json.loads((out / name).read_text())


def test_each_step_is_judged_and_the_best_one_is_shipped(
    cli: Cli, model: Path, plan: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    outcome = cli(*arguments(model, plan, out))
    assert outcome.code == 0, outcome.err
    steps, results = read(out, "steps.json")["steps"], read(out, "results.json")
    names = [step["name"] for step in steps]
    assert names[:3] == ["uniform", "owl", "gauss_newton"]
    assert "searched" in names
    assert names[-1].endswith("-sparsegpt")
    assert [row["name"] for row in results["rows"]] == ["dense", *names]
    pruners = {row["name"]: row["pruner"]["name"] for row in results["rows"][1:]}
    assert {pruners["uniform"], pruners[names[-1]]} == {"wanda", "sparsegpt"}
    assert "The last " in outcome.out
    page = (out / "report.html").read_text()
    assert "<h2>Steps</h2>" in page
    assert (out / "plots" / "steps.png").exists()
    assert "rebuilt with several pruners" in (out / "checkpoint" / "README.md").read_text()
    study = steps[names.index("searched")]
    assert study["seconds"] >= results["seconds"]["search"], "the study is a part of its step"
    best = [step for step in steps if step["best"]]
    assert [step["row"]["score"] for step in best] == sorted(
        (step["row"]["score"] for step in best), reverse=True
    )
    assert results["shipped"] == best[-1]["name"]
    assert read(out, "profile.json")["pruner"] == best[-1]["pruner"]
    assert cli("verify", out / "checkpoint", "--profile", out / "profile.json").code == 0


def test_a_plan_of_counts_gives_the_same_profile_after_kills(
    cli: Cli, model: Path, plan: Path, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert cli(*arguments(model, plan, whole)).code == 0
    command = [sys.executable, "-m", "sparsity_search", *map(str, arguments(model, plan, cut))]
    for wanted in (1, 3):  # steps that are recorded when the process is killed
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            file = cut / "steps.json"
            if file.exists() and len(read(cut, "steps.json")["steps"]) >= wanted:
                process.send_signal(signal.SIGKILL)
                process.wait()
            time.sleep(0.01)
    assert cli(*arguments(model, plan, cut)).code == 0
    for name in ("profile.json", "checkpoint/model.safetensors"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()


def test_a_dry_run_shows_the_steps_and_writes_nothing(
    cli: Cli, model: Path, plan: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    outcome = cli(*arguments(model, plan, out), "--dry-run")
    assert outcome.code == 0, outcome.err
    shown = [line.split()[0] for line in outcome.out.splitlines() if line.strip()]
    for name in ("uniform", "owl", "gauss_newton,", "search", "checkpoint"):
        assert name in shown
    assert "memory" in outcome.out
    assert not out.exists()


def test_a_plan_may_have_no_study(cli: Cli, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    given = ("--sparsity", 0.6, "--plan", "quick", "--initial", "owl,lamp", "--out", out)
    outcome = cli("search", model, *given, "--pruner", "wanda", *SMALL)
    assert outcome.code == 0, outcome.err
    names = [row["name"] for row in read(out, "results.json")["rows"]]
    assert names == ["dense", "uniform", "owl", "lamp"]
    assert (out / "report.html").exists()


def test_a_search_that_is_made_again_ships_the_same(
    cli: Cli, model: Path, plan: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shipped = []
    for _ in range(2):
        assert cli(*arguments(model, plan, out)).code == 0
        shipped.append(((out / "profile.json").read_bytes(), read(out, "results.json")["rows"]))
    assert shipped[0] == shipped[1]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("[{starts: [owll]}]", "owl"),
        ("[{allocate: owl, settings: {n: 5}}]", "no setting 'n'"),
        ("[{allocate: gauss_newton, settings: {start: bset}}]", "bset"),
        ("[{search: {searcher: {name: evolutoin}}}]", "evolution"),
        ("[{search: {ladder: {fesh: true}}}]", "fesh"),
        ("[{rebuild: {name: sparsegpt, dampening: 1}}]", "dampening"),
        ("[{rebuild: flap}]", "removes"),
    ],
)
def test_a_plan_is_refused_before_any_work(
    cli: Cli, tmp_path: Path, steps: str, message: str
) -> None:
    file, out = tmp_path / "plan.yaml", tmp_path / "run"
    file.write_text(f"steps: {steps}")
    outcome = cli("search", "absent", "--sparsity", 0.6, "--plan", file, "--out", out, *SMALL)
    assert outcome.code == 2
    assert message in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    assert not out.exists()
