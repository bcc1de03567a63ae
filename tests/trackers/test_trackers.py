"""Each tracker without a network: what was sent is read back with the tool's own readers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsity_search.errors import MissingExtraError
from sparsity_search.registry import TRACKERS
from sparsity_search.utils import extras

SETTINGS = {"study.seed": 3, "pruner.name": "wanda", "budget.sparsity": 0.5}


def read_mlflow(folder: Path) -> tuple[dict[str, str], list[float], str]:
    from mlflow import MlflowClient

    client = MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'sparsity-search'")
    (run,) = client.search_runs([experiment.experiment_id])
    values = [m.value for m in client.get_metric_history(run.info.run_id, "candidate/score")]
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["profile.json"]
    return run.data.params, values, run.info.status


def read_tensorboard(folder: Path) -> tuple[dict[str, str], list[float], str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    (text,) = found.Tensors("settings/text_summary")
    settings = json.loads(text.tensor_proto.string_val[0].decode().strip("`\n"))
    settings = {key: str(value) for key, value in settings.items()}
    return settings, [event.value for event in found.Scalars("candidate/score")], ""


READERS: dict[str, Callable[[Path], tuple[dict[str, str], list[float], str]]] = {
    "mlflow": read_mlflow,
    "tensorboard": read_tensorboard,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "profile.json").write_text("{}")
    return tmp_path


def record(name: str, folder: Path, *, failed: bool = False) -> None:
    tracker = TRACKERS.create(name)
    tracker.check()
    tracking = tracker.open("mine", SETTINGS, folder)
    for step, value in enumerate((0.5, 0.25)):
        tracking.log({"candidate/score": value}, step)
    tracking.attach(folder / "profile.json")
    tracking.close(failed=failed)


@pytest.mark.parametrize("name", READERS)
def test_settings_and_numbers_are_kept(name: str, folder: Path) -> None:
    record(name, folder)
    settings, values, status = READERS[name](folder)
    assert {key: settings[key] for key in SETTINGS} == {k: str(v) for k, v in SETTINGS.items()}
    assert values == [0.5, 0.25]
    assert status in ("", "FINISHED")


def test_a_failed_job_is_told(folder: Path) -> None:
    record("mlflow", folder, failed=True)
    assert read_mlflow(folder)[2] == "FAILED"


@pytest.mark.enable_socket  # it talks to a process of its own on this machine
def test_wandb_keeps_an_offline_run(folder: Path) -> None:
    record("wandb", folder)
    (run,) = (folder / "wandb").glob("offline-run-*")
    (log,) = run.glob("*.wandb")
    content = log.read_bytes()
    assert b"candidate/score" in content
    assert b"study.seed" in content
    assert (run / "files" / "profile.json").exists()


@pytest.mark.parametrize("name", TRACKERS.names())
def test_a_missing_tool_is_told_before_the_work(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(module: str) -> Any:
        del module

    monkeypatch.setattr(extras, "find_spec", find)
    with pytest.raises(MissingExtraError, match=rf"pip install .*\[{name}\]"):
        TRACKERS.create(name).check()


def test_all_trackers_are_tested() -> None:
    assert {*TRACKERS.names()} == {*READERS, "wandb"}
