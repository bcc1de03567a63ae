"""A run directory: what is written is read back, and nothing else is taken for a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsity_search.config.load import load_config
from sparsity_search.errors import ConfigError, RunMismatchError
from sparsity_search.runs.directory import RunDirectory
from sparsity_search.spaces.hints import Hint
from sparsity_search.testing.problems import toy_space
from sparsity_search.testing.runs import build_run_layout, build_run_profiles, make_run
from tests.helpers.json_files import change_json

CONFIG = load_config(None, {"model.name": "tiny", "budget.sparsity": 0.5})


def begin(directory: RunDirectory, **facts: object) -> None:
    config = CONFIG.model_dump(mode="json")
    directory.begin({"config": config, "layout": [], "fingerprint": {"seed": 0}, **facts})


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


def test_a_run_that_goes_on_keeps_when_it_was_created(directory: RunDirectory) -> None:
    before, now = {"numpy": "2.0", "torch": "2.9"}, {"numpy": "2.1", "torch": "2.9"}
    begin(directory, created="monday", command="first", threads=1, versions=before)
    for _ in range(2):
        begin(directory, created="tuesday", command="second", threads=2, versions=now)
    facts = directory.read_facts()
    assert facts["versions"] == {"numpy": "2.0 then 2.1", "torch": "2.9"}
    assert (facts["created"], facts["command"], facts["threads"]) == ("monday", "first", 2)
    assert directory.read_config() == CONFIG
    with pytest.raises(RunMismatchError, match="seed"):
        begin(directory, fingerprint={"seed": 1})


def test_what_may_go_on(directory: RunDirectory) -> None:
    directory.check_resumable(CONFIG)  # there is nothing
    begin(directory)
    directory.check_resumable(CONFIG)
    more = load_config(None, {"model.name": "tiny", "budget.sparsity": 0.5, "study.rounds": 9})
    directory.check_resumable(more)
    other = load_config(None, {"model.name": "tiny", "budget.sparsity": 0.6})
    with pytest.raises(RunMismatchError, match=r"budget\.sparsity"):
        directory.check_resumable(other)


def test_what_is_no_place_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("mine")
    for path, words in ((tmp_path, "not empty"), (tmp_path / "text.txt", "is a file")):
        with pytest.raises(ConfigError, match=words):
            RunDirectory(path).check_resumable(CONFIG)


def test_a_configuration_of_another_version(directory: RunDirectory) -> None:
    begin(directory)
    config = directory.read_facts()["config"]
    config["study"]["unheard_of"] = 1
    change_json(directory.facts_file, config=config)
    with pytest.raises(RunMismatchError, match=r"run\.json"):
        directory.check_resumable(CONFIG)


def test_one_process_at_a_time(directory: RunDirectory) -> None:
    with directory.lock(), pytest.raises(ConfigError, match="another process"), directory.lock():
        pass
    with directory.lock():
        pass


@pytest.mark.parametrize(
    ("stored", "now", "said"),
    [("sqlite:///a.db", None, "give its URL"), (None, "sqlite:///a.db", "leave out --storage")],
)
def test_measurements_stay_where_they_are(
    directory: RunDirectory, stored: str | None, now: str | None, said: str
) -> None:
    given = {"model.name": "tiny", "budget.sparsity": 0.5}
    before, after = (load_config(None, {**given, "study.storage": url}) for url in (stored, now))
    begin(directory, config=before.model_dump(mode="json"))
    directory.check_resumable(before)
    with pytest.raises(RunMismatchError, match=said):
        directory.check_resumable(after)


def test_finished_runs(tmp_path: Path) -> None:
    make_run(tmp_path / "b", rounds=0)
    make_run(tmp_path / "a", rounds=0)
    make_run(tmp_path / "c", rounds=0, finished=False)
    (tmp_path / "text.txt").write_text("mine")
    found = RunDirectory.list_finished(tmp_path)
    assert [run.path.name for run in found] == ["a", "b"]
    assert all(run.read_results() for run in found)
    assert RunDirectory(tmp_path / "c").read_results() is None


def test_stages(directory: RunDirectory) -> None:
    layout = build_run_layout()
    profiles = build_run_profiles(layout)
    begin(directory, study="search-0")
    assert (directory.read_starts(layout), directory.read_studies()) == ([], ["search-0"])
    starts = [{"owl": profiles["owl"]}, {"searched": profiles["searched"]}]
    directory.write_stages(["one", "two"], starts)
    assert (directory.read_starts(layout), directory.read_studies()) == (starts, ["one", "two"])


def test_hints_are_those_of_one_stage_and_space(directory: RunDirectory) -> None:
    space, other = toy_space(), toy_space(target=0.3)
    losses = tuple(
        np.arange(high - low + 1) / 3
        for low, high in zip(space.limits.lower, space.limits.upper, strict=True)
    )
    hint = Hint("scores/mine.json", space.limits.lower, losses)
    directory.write_hint(1, hint, space)
    found = directory.read_hint(1, hint.name, space)
    assert found is not None
    assert found.name == hint.name
    assert all((a == b).all() for a, b in zip(found.losses, losses, strict=True))
    assert directory.read_hint(2, hint.name, space) is None
    assert directory.read_hint(1, hint.name, other) is None


@pytest.mark.parametrize("names", [("a/scores.json", "b/scores.json"), ("fisher", "fisher.json")])
def test_hints_of_equal_file_names_are_kept_apart(
    directory: RunDirectory, names: tuple[str, str]
) -> None:
    space = toy_space()
    for value, name in enumerate(names):
        levels = [len(space.limits.of(gene)) for gene in range(space.n_genes)]
        losses = tuple(np.full(n, value) for n in levels)
        directory.write_hint(1, Hint(name, space.limits.lower, losses), space)
    found = [directory.read_hint(1, name, space) for name in names]
    assert [hint and hint.losses[0][0] for hint in found] == [0, 1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda hint: [], "not a hint"),
        (lambda hint: {**hint, "losses": hint["losses"][:-1]}, "one loss for each level"),
        (
            lambda hint: {**hint, "losses": [[1.0]] * len(hint["losses"])},
            "one loss for each level",
        ),
        (lambda hint: {**hint, "losses": [["x"]]}, r"losses\.0\.0: must be .*number"),
        (
            lambda hint: {key: hint[key] for key in ("format", "name", "space")},
            "no 'losses' in it",
        ),
    ],
)
def test_a_hint_of_the_wrong_shape_is_one_line(
    directory: RunDirectory, change: Callable[[Any], Any], words: str
) -> None:
    space = toy_space()
    limits = [space.limits.of(gene) for gene in range(space.n_genes)]
    hint = Hint("fisher", space.limits.lower, tuple(np.ones(len(span)) for span in limits))
    directory.write_hint(1, hint, space)
    (file,) = (directory.path / "hints" / "stage1").iterdir()
    stored = json.loads(file.read_text())
    del stored["checksum"]
    file.write_text(json.dumps(change(stored)))
    with pytest.raises(RunMismatchError, match=rf"fisher\.json is corrupt .*{words}"):
        directory.read_hint(1, "fisher", space)
