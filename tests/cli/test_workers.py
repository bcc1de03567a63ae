"""Searches by several processes, on a tiny random model."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsity_search.report import RunRecord
from sparsity_search.supernet.objective import SupernetObjective
from sparsity_search.trials.history import Score

from .conftest import SMALL, Outcome

Cli = Callable[..., Outcome]


def search(cli: Cli, model: Path, out: Path, *more: object) -> Outcome:
    return cli(
        "search", model, "--sparsity", 0.6, "--rounds", 3, "--out", out, "--dtype", "float32",
        *SMALL, *more,
    )  # fmt: skip


def plain(run: Path) -> set[object]:
    found = RunRecord.read(run).measurements
    return {(m.round, m.rung, m.candidate, m.fidelity, m.score) for m in found}


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many threads for each worker as for one alone."""
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))


def wait_in(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process measure nothing until the worker it started is there, and little then."""
    measure = SupernetObjective.__call__
    log, seat = run / "worker-1.log", run / ".claims" / "seat-1"

    def slow(*args: Any, **given: Any) -> Score:
        started = time.monotonic()
        while log.exists() and not seat.exists() and time.monotonic() - started < 120:
            time.sleep(0.1)
        time.sleep(0.3 * log.exists())
        return measure(*args, **given)

    monkeypatch.setattr(SupernetObjective, "__call__", slow)


@pytest.mark.slow
@pytest.mark.usefixtures("threads")
def test_workers_find_what_one_finds(
    cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two stages, with a hint that is measured while the others are not there yet."""
    options = ("--stages", 2, "--hints", "gradients", "--pruner", "sparsegpt")
    assert search(cli, model, tmp_path / "one", *options).code == 0
    wait_in(tmp_path / "two", monkeypatch)
    outcome = search(cli, model, tmp_path / "two", *options, "--workers", 2)
    assert outcome.code == 0, outcome.err
    assert "Traceback" not in (tmp_path / "two" / "worker-1.log").read_text()
    first, second = ((tmp_path / d / "profile.json").read_bytes() for d in ("one", "two"))
    assert first == second
    assert plain(tmp_path / "one") == plain(tmp_path / "two")
    # nothing is measured twice, and the run goes on with one worker as with two
    measured = RunRecord.read(tmp_path / "two").measurements
    assert len(measured) == len(plain(tmp_path / "two"))
    assert {m.worker for m in measured} == {0, 1}
    assert search(cli, model, tmp_path / "two", *options).code == 0


@pytest.mark.slow
@pytest.mark.usefixtures("threads")
def test_workers_that_come_late_or_early(cli: Cli, model: Path, tmp_path: Path) -> None:
    """One replays what was measured and ends with the stage; one needs the supernet first."""
    run = tmp_path / "run"
    assert search(cli, model, run, "--workers", 2).code == 0
    before = plain(run)
    outcome = cli("work", run, "--device", "cpu")
    assert outcome.code == 0, outcome.err
    assert plain(run) == before
    (run / "supernet" / "manifest.json").unlink()
    outcome = cli("work", run)
    assert (outcome.code, "not measuring yet" in outcome.err) == (2, True)


@pytest.mark.slow
def test_a_search_for_one_takes_no_others(cli: Cli, model: Path, tmp_path: Path) -> None:
    assert search(cli, model, tmp_path / "run").code == 0
    outcome = cli("work", tmp_path / "run")
    assert outcome.code == 2
    assert "--workers" in outcome.err


def test_nothing_to_work_on(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("work", tmp_path)
    assert (outcome.code, "run.json" in outcome.err) == (2, True)


@pytest.mark.slow
@pytest.mark.usefixtures("threads")
def test_a_worker_that_fails_is_told_of(
    cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    popen = subprocess.Popen
    failing = [sys.executable, "-c", "import sys; sys.exit('no such device')"]
    monkeypatch.setattr(subprocess, "Popen", lambda _, **given: popen(failing, **given))
    with pytest.warns(UserWarning, match="worker 1 of .* failed: no such device"):
        outcome = search(cli, model, tmp_path / "run", "--workers", 2)
    assert outcome.code == 0, outcome.err
