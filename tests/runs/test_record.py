from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparsity_search.errors import ConfigError, MissingMeasurementsError, RunMismatchError
from sparsity_search.runs.directory import RunDirectory
from sparsity_search.runs.record import RunRecord, load_measurements, trace_scores
from sparsity_search.runs.redact import redact, redact_url
from sparsity_search.testing.runs import (
    TARGET,
    build_run_profiles,
    build_run_steps,
    make_run,
    simulate_measurements,
)


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    value = json.loads(path.read_text())
    value.pop("checksum", None)
    change(value)
    path.write_text(json.dumps(value))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_tables_of_pandas(record: RunRecord) -> None:
    frame = record.to_frame()
    assert list(frame["name"]) == [row["name"] for row in record.results["rows"]]
    assert list(frame["score"])[:2] == [row["score"] for row in record.results["rows"]][:2]
    assert len(record.history.to_frame()) == len(record.measurements)


def test_reads_what_was_written(run_dir: Path) -> None:
    before = contents(run_dir)
    record = RunRecord.read(run_dir)
    assert list(record.measurements) == list(simulate_measurements(3))
    assert list(record.profiles) == ["uniform", "owl", "searched"]
    assert dict(record.profiles) == build_run_profiles(record.layout)
    assert record.shipped == record.profiles["searched"]
    assert (record.target, record.top_rung, record.fresh) == (TARGET, 1, False)
    assert contents(run_dir) == before


def test_steps_are_part_of_the_record(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, rounds=3, finalise="alps")
    record = RunRecord.read(run_dir)
    assert list(record.steps) == build_run_steps(record.layout, 52.0, "alps")
    assert record.seconds == record.steps[-1].elapsed + 2
    assert record.rebuilt == {"searched-alps", "uniform-alps"}
    assert list(record.distinct_profiles) == ["uniform", "owl", "searched"]
    assert record.shipped == record.profiles["searched"]


def test_profiles_of_earlier_sessions_are_left_out(run_dir: Path) -> None:
    (run_dir / "profiles/older.json").write_bytes((run_dir / "profiles/owl.json").read_bytes())
    assert list(RunRecord.read(run_dir).profiles) == ["uniform", "owl", "searched"]
    (run_dir / "steps.json").unlink()
    older = RunRecord.read(run_dir)
    assert list(older.profiles) == ["uniform", "older", "owl", "searched"]
    assert (older.steps, older.seconds, older.rebuilt) == ((), 0, set())


def test_a_search_without_a_study_lacks_no_measurements(run_dir: Path) -> None:
    for name in ("journal.log", "stages.json", "starts.json"):
        (run_dir / name).unlink()
    assert RunRecord.read(run_dir).missing is None
    (run_dir / "steps.json").unlink()
    assert RunRecord.read(run_dir).missing is not None


def test_shipped_profile_is_the_one_named_in_the_results(run_dir: Path) -> None:
    edit(run_dir / "results.json", lambda r: r.update(shipped="owl"))
    (run_dir / "profile.json").write_bytes((run_dir / "profiles/owl.json").read_bytes())
    record = RunRecord.read(run_dir)
    assert record.shipped == build_run_profiles(record.layout)["owl"]
    assert list(record.profiles) == ["uniform", "searched", "owl"]


def test_reads_an_unfinished_run(tmp_path: Path) -> None:
    record = RunRecord.read(make_run(tmp_path, rounds=2, finished=False))
    assert record.results is None
    assert record.shipped is None
    assert not record.profiles
    assert len(record.measurements) == 2 + 2 * 20


def test_a_run_without_its_journal_has_no_measurements(run_dir: Path) -> None:
    (run_dir / "journal.log").unlink()
    record = RunRecord.read(run_dir)
    assert not record.measurements
    assert record.missing == f"there is no journal {run_dir / 'journal.log'}"
    assert not (run_dir / "journal.log").exists()


def test_a_journal_is_read_while_it_is_written(run_dir: Path) -> None:
    journal = run_dir / "journal.log"
    torn = journal.read_bytes()[:-20]
    journal.write_bytes(torn)
    assert load_measurements(run_dir) == list(simulate_measurements(3))[:-1]
    assert journal.read_bytes() == torn


def test_reads_another_storage_and_study(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/search.db"
    run_dir = make_run(tmp_path / "run", rounds=1, storage=url)
    assert not (run_dir / "journal.log").exists()
    before = contents(tmp_path)
    assert load_measurements(run_dir, url) == list(simulate_measurements(1))
    assert contents(tmp_path) == before
    (run_dir / "stages.json").unlink()  # as in runs before it
    edit(run_dir / "run.json", lambda run: run.update(study="another"))
    with pytest.raises(MissingMeasurementsError, match=r"search\.db holds no measurements"):
        load_measurements(run_dir, url)


def test_a_database_that_a_record_names_is_not_opened(run_dir: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/foreign.db"
    edit(run_dir / "run.json", lambda run: run["config"]["study"].update(storage=url))
    before = contents(tmp_path)
    record = RunRecord.read(run_dir)
    assert not record.measurements
    assert record.missing is not None
    assert url in record.missing
    assert "--storage or SPARSITY_SEARCH_STORAGE" in record.missing
    with pytest.raises(ConfigError, match=r"there is no database .*foreign\.db"):
        RunRecord.read(run_dir, url)
    assert contents(tmp_path) == before


def test_a_run_with_a_journal_reads_no_database(run_dir: Path) -> None:
    """A URL in the environment is for other runs."""
    url = "postgresql://nobody@localhost/search"
    assert load_measurements(run_dir, url) == list(simulate_measurements(3))


def test_a_storage_that_cannot_be_read_is_told_without_its_password(run_dir: Path) -> None:
    url = "nosuchdatabase://me:hunter2@host/search"
    edit(run_dir / "run.json", lambda run: run["config"]["study"].update(storage=url))
    missing = RunRecord.read(run_dir).missing
    with pytest.raises(ConfigError, match=r"nosuchdatabase://\*\*\*@host/search") as caught:
        RunRecord.read(run_dir, url)
    assert "hunter2" not in f"{caught.value} {missing}"


@pytest.mark.parametrize("name", ["absent", "", "file"])
def test_no_run_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(ConfigError, match=r"no run directory: it has no run\.json"):
        RunRecord.read(tmp_path / name)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("run.json", '{"format": 1, "conf', r"run\.json is corrupt"),
        ("run.json", "[]", r"run\.json is not the record of a run"),
        ("run.json", '{"format": 2}', r"run\.json .* format 2"),
        ("run.json", '{"format": 1, "config": {}}', r"run\.json .* no 'config\.model' in it"),
        ("run.json", '{"format": 1, "config": 3}', r"run\.json .* config: .*; no 'layout' in it"),
        ("results.json", '{"format": 1}', r"results\.json .* no 'rows'"),
        (
            "results.json",
            '{"format": 1, "rows": [{}]}',
            r"results\.json .* no 'rows\.0\.name' in it",
        ),
        ("profiles/owl.json", '{"format": 1}', "not a sparsity profile"),
        ("profile.json", "", r"profile\.json is corrupt"),
        ("steps.json", '{"format": 1}', r"steps\.json is not the steps of a run: no 'steps'"),
        ("journal.log", "no journal\n" * 3, r"journal\.log is damaged in line 1 "),
    ],
)
def test_a_corrupt_file_is_named(run_dir: Path, file: str, text: str, message: str) -> None:
    (run_dir / file).write_text(text)
    with pytest.raises(RunMismatchError, match=message):
        RunRecord.read(run_dir)


def test_a_profile_of_another_model_is_refused(run_dir: Path) -> None:
    edit(run_dir / "profiles/owl.json", lambda p: p["units"].pop("layers.3.q"))
    with pytest.raises(RunMismatchError, match=r"another model: it lacks layers\.3\.q"):
        RunRecord.read(run_dir)


def test_curve_is_the_best_top_rung_score_so_far() -> None:
    measured = list(simulate_measurements(4))
    found = trace_scores(measured, 1)
    top = [(i, m) for i, m in enumerate(measured, start=1) if m.rung == 1]
    assert found.evaluations == tuple(i for i, _ in top)
    assert found.elapsed == tuple(m.elapsed for _, m in top)
    assert found.scores == tuple(
        min(m.score.value for j, m in top if j <= i) for i in found.evaluations
    )


def test_curve_ignores_failures_and_repeated_records() -> None:
    first, *_, last = [m for m in simulate_measurements(1) if m.rung == 1]
    failed = replace(last, score=replace(last.score, value=float("inf")))
    repeated = replace(first, score=replace(first.score, value=0.0))
    assert trace_scores([failed], 1).scores == ()
    assert trace_scores([first, failed, repeated], 1).scores == (first.score.value,)


def test_curve_with_fresh_tokens_shows_the_winner_of_each_round() -> None:
    measured = list(simulate_measurements(3, fresh=True))
    found = trace_scores(measured, 1, fresh=True)
    assert found.scores == tuple(
        min(m.score.value for m in measured if m.rung == 1 and m.round == round_)
        for round_ in range(4)
    )
    assert found.evaluations == (2, 22, 42, 62)


def test_initial_scores_are_those_of_the_search(record: RunRecord) -> None:
    assert record.initial_scores == {"uniform": 0.9, "owl": 0.8}


def test_starts_from_files_have_their_labels(run_dir: Path, record: RunRecord) -> None:
    edit(run_dir / "run.json", lambda run: run["config"].update(initial=["a/b.json", "uniform"]))
    starts = {"a-b": record.profiles["owl"], "uniform": record.profiles["uniform"]}
    RunDirectory(run_dir).write_stages(["search"], [starts])
    assert RunRecord.read(run_dir).initial_scores == {"uniform": 0.9, "a-b": 0.8}
    (run_dir / "starts.json").write_text("[[]]")
    with pytest.raises(RunMismatchError, match=r"starts\.json is not the starts of a search"):
        RunRecord.read(run_dir)


def test_a_search_over_settings_starts_from_the_default_ones(record: RunRecord) -> None:
    fingerprint = {**record.run["fingerprint"], "parameters": "0123456789abcdef"}
    alone = [m for m in record.measurements if m.round or m.candidate == (0, 0)]
    other = replace(
        record, run={**record.run, "fingerprint": fingerprint}, measurements=tuple(alone)
    )
    assert other.initial_scores == {"default settings": 0.9}


def test_initial_scores_are_not_guessed(record: RunRecord) -> None:
    other = replace(record, allocated=("another", "owl"))
    assert other.initial_scores == {"uniform": 0.9}


@pytest.mark.parametrize(
    ("url", "redacted"),
    [
        ("postgresql://me:secret@host:5432/db", "postgresql://***@host:5432/db"),
        ("mysql+pymysql://me:a/b@c:d@host/db", "mysql+pymysql://***@host/db"),
        ("postgresql://me@host/db", "postgresql://***@host/db"),
        (
            "postgresql:///db?user=me&password=secret&x=1",
            "postgresql:///db?user=***&password=***&x=1",
        ),
        ("sqlite:////tmp/search.db", "sqlite:////tmp/search.db"),
        ("journal.log", "journal.log"),
    ],
)
def test_redact_url(url: str, redacted: str) -> None:
    assert redact_url(url) == redacted


def test_redact_finds_urls_in_texts() -> None:
    url = "mysql://me:two words'@host/db"
    value = {"a": [f"--storage {url} --seed 1", 3, None], "b": "x 'redis://u:p@h' y"}
    assert redact(value, (url,)) == {
        "a": ["--storage mysql://***@host/db --seed 1", 3, None],
        "b": "x 'redis://***@h' y",
    }
