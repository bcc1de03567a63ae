from __future__ import annotations

from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any

import pytest

from sparsity_search.config.load import load_config
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.tracking import MonitorGroup, TrackingMonitor, track
from sparsity_search.interfaces.tracker import Tracker, Tracking
from sparsity_search.runs.directory import RunDirectory
from sparsity_search.testing.runs import build_run_layout, build_run_steps
from sparsity_search.trials.history import Fidelity, Measurement, Score


class Notes(Tracking):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.files: list[str] = []
        self.ends: list[bool] = []

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.rows.append((step, dict(values)))

    def attach(self, path: Path) -> None:
        self.files.append(path.name)

    def close(self, *, failed: bool = False) -> None:
        self.ends.append(failed)


def measured(rung: int, value: float) -> Measurement:
    score = Score(value, (value,))
    return Measurement(
        round=1, rung=rung, candidate=(0,), fidelity=Fidelity(512), score=score, elapsed=2.0
    )


def test_scores_of_the_top_rung_and_candidates_are_sent(tmp_path: Path) -> None:
    notes = Notes()
    monitor = TrackingMonitor(lambda: notes)
    monitor.finish([tmp_path], failed=False)  # nothing was sent: nothing is begun
    for rung, value in ((0, 9.0), (1, 3.0), (1, inf)):
        monitor.measured(measured(rung, value), top=1)
    step = build_run_steps(build_run_layout(), 120.0)[0]
    monitor.judged(step)
    search = {"search/seconds": 2.0, "search/round": 1.0}
    assert notes.rows[0] == (0, {**search, "search/score": 3.0, "search/tokens": 1024.0})
    assert notes.rows[1] == (1, {**search, "search/tokens": 1536.0})
    assert notes.rows[2] == (
        2,
        {
            "candidate/score": 0.96,
            "candidate/perplexity": 40.0,
            "candidate/sparsity": step.row["sparsity"],
            "candidate/minutes": step.elapsed / 60,
            "candidate/best": 1.0,
        },
    )


class Tool(Tracker):
    """Gives notes out."""

    def __init__(self) -> None:
        self.opened: list[tuple[str, Mapping[str, Any], Path]] = []
        self.notes = Notes()

    def check(self) -> None:
        """Need nothing."""

    def open(self, name: str, settings: Mapping[str, Any], folder: Path) -> Notes:
        self.opened.append((name, settings, folder))
        return self.notes


def test_a_job_is_tracked_from_its_first_candidate_to_its_end(tmp_path: Path) -> None:
    tool, directory = Tool(), RunDirectory(tmp_path / "mine")
    url = "postgresql://me:hunter2@host/db"
    config = load_config(None, {"model.name": "m", "study.storage": url})
    step = build_run_steps(build_run_layout(), 120.0)[0]
    with track(Monitor(), [tool], config, directory) as monitor:
        assert tool.opened == []
        monitor.judged(step)
        directory.path.mkdir()
        directory.profile_file.write_text("{}")
    ((name, settings, folder),) = tool.opened
    assert (name, folder) == ("mine", tmp_path / "mine")
    assert settings["model.name"] == "m"
    assert "hunter2" not in str(settings)
    assert (tool.notes.files, tool.notes.ends) == (["profile.json"], [False])


def test_a_job_that_fails_is_told(tmp_path: Path) -> None:
    tool, directory = Tool(), RunDirectory(tmp_path)
    config = load_config(None, {"model.name": "m"})
    step = build_run_steps(build_run_layout(), 120.0)[0]

    def fail() -> None:
        with track(Monitor(), [tool], config, directory) as monitor:
            monitor.judged(step)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert tool.notes.ends == [True]
    with track(Monitor(), [], config, directory) as alone:
        assert type(alone) is Monitor


class Stopper(Monitor):
    """Stops after a number of parts of steps."""

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.left = parts
        self.told: list[str] = []

    def tell(self, message: str) -> None:
        self.told.append(message)

    def stopped(self) -> bool:
        return self.left <= 0


def test_a_group_tells_all_and_any_stops() -> None:
    first, second = Stopper(2), Stopper(1)
    group = MonitorGroup(first, second)
    group.tell("hello")
    assert first.told == second.told == ["hello"]
    assert not group.stopped()
    second.left = 0
    assert group.stopped()
    with group.step("work", 3) as advance:
        advance()
    assert group.seconds.keys() == {"work"}


@pytest.mark.parametrize("name", [n for n in dir(Monitor) if not n.startswith("_")])
def test_a_group_has_every_event(name: str) -> None:
    """One that a group forgets would reach no monitor."""
    assert name in ("step",) or name in vars(MonitorGroup)
