"""The supernet around the profile that a search starts from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sparsity_search.config.load import load_config
from sparsity_search.engine.job import SearchJob
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.opening import open_job
from sparsity_search.engine.stages import begin, run_stages
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Budget
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.runs.directory import RunDirectory
from sparsity_search.runs.record import RunRecord
from sparsity_search.spaces.files import load_space
from sparsity_search.testing.models import save_tiny_model, tiny_llama, tiny_text
from sparsity_search.utils.files import write_json
from sparsity_search.workflow.predictor import read_spaces

SMALL = {
    "model.dtype": "float32",
    "model.device": "cpu",
    "budget.sparsity": 0.6,
    "data.calibration_length": 32,
    "data.calibration_sequences": 4,
    "data.search_length": 16,
    "data.search_sequences": 4,
    "data.final_length": 32,
    "data.final_sequences": 1,
    "ladder.candidates": 2,
    "ladder.rungs": [{"tokens": 64, "survivors": 1}],
    "study.rounds": 0,
}


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A profile that takes more from the first blocks and lies between levels, as a file."""
    layout = PrunableModel(tiny_llama(layers=3)).layout
    wanted = Budget(0.6).project(layout, np.array([0.7 - 0.1 * unit.block for unit in layout]))
    space = load_space("per_linear").of_levels.build(layout, Budget(0.6), {})
    assert space.profile(space.nearest(wanted)) != wanted
    write_json(tmp_path / "start.json", wanted.to_json())
    return tmp_path / "start.json"


def searched(tmp_path: Path, start: Path, propagate: str) -> tuple[SearchJob, float]:
    """Return a search of no rounds, and what it scored its start."""
    folder = save_tiny_model(tmp_path / "tiny")
    (tmp_path / "text.txt").write_text(tiny_text())
    given = {
        "model.name": str(folder),
        "data.calibration": f"file:{tmp_path / 'text.txt'}",
        "supernet.propagate": propagate,
        "initial": [str(start), "uniform"],
    }
    job = open_job(load_config(None, {**SMALL, **given}), tmp_path / propagate, Monitor())
    with job.directory.lock():
        begin(job)
        run_stages(job, allocate_starts(job))
    return job, RunRecord.read(job.directory.path).initial_scores[name_start(job)]


def allocate_starts(job: SearchJob) -> dict[str, SparsityProfile]:
    subject, tokens = job.session.subject, job.session.text["calibration"]
    given = (subject, tokens, job.space.budget, job.space.bounds)
    return {name: made.allocate(*given) for name, made in job.plugins.initial.items()}


def name_start(job: SearchJob) -> str:
    return next(iter(job.plugins.initial))


@pytest.mark.parametrize("propagate", ["start", "centre"])
def test_the_start_scores_what_it_has_when_shipped(
    tmp_path: Path, start: Path, propagate: str
) -> None:
    job, score = searched(tmp_path, start, propagate)
    subject, text = job.session.subject, job.session.text
    proxy = job.plugins.evaluator.bind(subject.model, text["search"])
    (profile,) = (
        allocator.allocate(subject, text["calibration"], job.space.budget, job.space.bounds)
        for name, allocator in job.plugins.initial.items()
        if name != "uniform"
    )
    with subject.preserved():
        prune_sequentially(subject, profile, job.plugins.pruner, text["calibration"])
        shipped = proxy.score(subject.model, range(4)).value
    assert (score == pytest.approx(shipped, rel=1e-5)) == (propagate == "start")


def test_the_space_lies_around_the_start_and_uniform_is_measured_too(
    tmp_path: Path, start: Path
) -> None:
    job, score = searched(tmp_path, start, "start")
    record = RunRecord.read(job.directory.path)
    assert record.starts == [name_start(job), "uniform"]
    assert record.initial_scores[name_start(job)] == score
    first, second = (m.candidate for m in record.measurements)
    assert (any(first), any(second)) == (False, True)
    (space,) = read_spaces(RunDirectory(job.directory.path))
    expected = json.loads(start.read_text())["units"]
    counts = [entry["removed"] for entry in expected.values()]
    assert list(space.profile(first).removed) == counts
    assert space.nearest(job.space.base) == second
    again = run_stages(job, allocate_starts(job))
    assert again is not None
    assert list(next(iter(again.starts.values())).removed) == counts


@pytest.mark.parametrize(
    ("space", "moves"), [("per_linear", True), ("per_block", False), ("two_of_four", False)]
)
def test_which_spaces_move(space: str, moves: bool) -> None:
    layout = PrunableModel(tiny_llama(layers=3)).layout
    found = load_space(space).of_levels.build(layout, Budget(0.4), {})
    assert found.movable == moves
