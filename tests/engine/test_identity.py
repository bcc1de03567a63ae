"""Equal weights with another configuration or tokenizer are another model, for every job."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from sparsity_search.config.load import load_config
from sparsity_search.config.schema import RunConfig
from sparsity_search.engine.fingerprint import identify_study
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.opening import open_job
from sparsity_search.engine.supernets import StageSupernet
from sparsity_search.errors import ConfigError, RunMismatchError
from sparsity_search.models.io.saving import save_checkpoint
from sparsity_search.models.running import walk
from sparsity_search.runs.directory import RunDirectory
from sparsity_search.runs.record import load_measurements
from sparsity_search.searchers.bases.models import ModelSettings
from sparsity_search.testing.models import tiny_text, tiny_tokenizer
from sparsity_search.workflow import compare as comparing
from sparsity_search.workflow import search as searching
from sparsity_search.workflow.compare import compare
from sparsity_search.workflow.compare.cases import Plan
from sparsity_search.workflow.predictor import learn
from sparsity_search.workflow.search import search
from sparsity_search.workflow.sensitivity import sensitivity
from sparsity_search.workflow.work import work
from tests.helpers.families import ALL_FAMILIES
from tests.helpers.json_files import change_json

Configure = Callable[..., RunConfig]

#: File of the model, changed fields, and the key that tells it.
CHANGES: dict[str, tuple[str, dict[str, Any], str]] = {
    "rope": (
        "config.json",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        "model.config",
    ),
    "eps": ("config.json", {"rms_norm_eps": 0.1}, "model.config"),
    "window": ("config.json", {"sliding_window": 16}, "model.config"),
    "tokenizer": ("tokenizer.json", {"normalizer": {"type": "Lowercase"}}, "tokenizer"),
}

#: Settings of searches of each kind.
KINDS: dict[str, dict[str, Any]] = {
    "levels": {},
    "stages": {"study.stages": 2},
    "settings of an allocator": {"space": "owl_grid", "initial": []},
    "patterns": {"space": "two_of_four", "pruner.pattern": "2:4", "budget.sparsity": 0.25},
    "structures": {"pruner.name": "flap"},
    "hints": {"hints": ["layer_error"]},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("identity")
    save_checkpoint(ALL_FAMILIES["mistral"](), tiny_tokenizer(), folder / "model")
    (folder / "text.txt").write_text(tiny_text())
    return folder


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved / "model", tmp_path / "model")


@pytest.fixture
def configure(saved: Path, model: Path) -> Configure:
    def configured(**options: Any) -> RunConfig:
        given = {
            "model.name": str(model),
            "model.dtype": "float32",
            "data.calibration": f"file:{saved / 'text.txt'}",
            "data.calibration_length": 16,
            "data.calibration_sequences": 4,
            "data.search_length": 16,
            "data.final_length": 24,
            "data.final_sequences": 3,
            "ladder.candidates": 4,
            "ladder.rungs": [{"tokens": 16, "survivors": 1}],
            "study.rounds": 1,
            "budget.sparsity": 0.5,
            "initial": ["uniform"],
        }
        return load_config(
            None, {**given, **{k.replace("__", "."): v for k, v in options.items()}}
        )

    return configured


@pytest.fixture(autouse=True)
def _no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures out, which take most of the time."""
    monkeypatch.setattr(comparing, "write_comparison", lambda _: None)
    monkeypatch.setattr(searching, "write_report", lambda *_: None)


def change(model: Path, name: str) -> str:
    """Change one file of a model, and return the key of the identity that tells it."""
    file, fields, key = CHANGES[name]
    path = model / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return key


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def assert_refused(job: Callable[[], Any], out: Path, key: str) -> None:
    """Assert that a job is refused in one line that names the key, and changes nothing."""
    before = contents(out)
    with pytest.raises(RunMismatchError, match=f"these differ: {key} ") as caught:
        job()
    message = str(caught.value)
    assert "\n" not in message
    assert message.count("→") == 1
    assert contents(out) == before


@pytest.mark.parametrize("name", CHANGES)
def test_a_search_is_of_one_model(
    configure: Configure, model: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "run"
    search(configure(), out)
    key = change(model, name)
    assert_refused(lambda: search(configure(study__rounds=2), out), out, key)


@pytest.mark.parametrize("kind", KINDS)
def test_studies_of_each_kind(
    configure: Configure, model: Path, tmp_path: Path, kind: str
) -> None:
    config = configure(**KINDS[kind])
    before = identify_study(open_job(config, tmp_path / "run", Monitor()))
    key = change(model, "eps")
    after = identify_study(open_job(config, tmp_path / "run", Monitor()))
    first, second = before.fingerprint, after.fingerprint
    assert {k for k in {**first, **second} if first.get(k) != second.get(k)} == {key}
    assert before.name != after.name  # apart in a shared database too


def test_stages_and_a_database(configure: Configure, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = {"study.stages": 2, "study.storage": f"sqlite:///{tmp_path}/study.db"}
    search(configure(**options), out)
    key = change(model, "eps")
    assert_refused(lambda: search(configure(**options), out), out, key)


def test_a_worker_that_would_measure_otherwise(
    configure: Configure, model: Path, tmp_path: Path
) -> None:
    config, out = configure(study__workers=2), tmp_path / "run"
    job = open_job(config, out, Monitor())
    RunDirectory(out).begin(
        {
            "config": config.model_dump(mode="json"),
            "fingerprint": identify_study(job).fingerprint,
            "layout": job.space.layout.to_json(),
        }
    )
    key = change(model, "rope")
    assert_refused(lambda: work(out), out, key)


def test_a_run_of_an_earlier_version(configure: Configure, tmp_path: Path) -> None:
    out, new = tmp_path / "run", ("model.config", "tokenizer", "transformers", "sparsity-search")
    search(configure(), out)
    stored = RunDirectory(out).read_facts()["fingerprint"]
    kept = {key: value for key, value in stored.items() if key not in new}
    change_json(out / "run.json", fingerprint=kept)
    with pytest.raises(RunMismatchError, match=r"model\.config \(absent → .*Use another --out"):
        search(configure(), out)


def test_other_versions_are_refused(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    search(configure(), out)
    monkeypatch.setattr(transformers, "__version__", "99.0")
    assert_refused(lambda: search(configure(), out), out, "transformers")


@pytest.mark.parametrize("name", CHANGES)
def test_a_shared_supernet(configure: Configure, model: Path, tmp_path: Path, name: str) -> None:
    config = configure(supernet__cache=str(tmp_path / "cache"))

    def open_supernet() -> StageSupernet:
        job = open_job(config, tmp_path / "run", Monitor())
        return StageSupernet(job, job.space, 1, job.space.base, identify_study(job).fingerprint)

    open_supernet().build()
    assert open_supernet().is_kept()
    change(model, name)
    assert not open_supernet().is_kept()


def test_a_search_beside_another_models_supernet(
    configure: Configure, model: Path, tmp_path: Path
) -> None:
    """Each candidate scores as in a search without a cache."""
    cached = configure(supernet__cache=str(tmp_path / "cache"))
    search(cached, tmp_path / "first")
    change(model, "eps")
    found = []
    for config, name in ((cached, "cached"), (configure(), "alone")):
        search(config, tmp_path / name)
        measured = load_measurements(tmp_path / name)
        found.append([(m.candidate, m.fidelity, m.score) for m in measured])
    assert found[0] == found[1] != []


@pytest.mark.parametrize("name", CHANGES)
def test_kept_statistics(
    configure: Configure,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    texts: list[nn.Module] = []
    inner = walk.BlockRunner

    def runner(subject: Any, tokens: torch.Tensor) -> Any:
        texts.append(subject.model)
        return inner(subject, tokens)

    monkeypatch.setattr(walk, "BlockRunner", runner)
    config = configure(
        data__statistics=str(tmp_path / "kept"),
        sensitivity__name="layer_error",
    )
    runs = []
    for changed in (None, None, name):
        if changed:
            change(model, changed)
        texts.clear()
        sensitivity(config, tmp_path / "scores.json")
        runs.append(len(texts))
    assert runs == [1, 0, 1]


@pytest.mark.parametrize("name", CHANGES)
def test_a_comparison(configure: Configure, model: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"

    def compared() -> None:
        config = configure()
        pruners, allocators = {"wanda": config.pruner}, ("uniform",)
        compare(
            Plan(config=config, allocators=allocators, pruners=pruners, sparsities=(0.5,)), out
        )

    compared()
    key = change(model, name)
    assert_refused(compared, out, key)


@pytest.mark.parametrize("name", ["window", "tokenizer"])
def test_files_that_were_measured_on_another_model(
    configure: Configure, model: Path, tmp_path: Path, name: str
) -> None:
    """Weights of another number type are still those of the model."""
    scores, dataset = tmp_path / "scores.json", tmp_path / "dataset.json"
    sensitivity(configure(sensitivity__name="layer_error"), scores)
    search(configure(study__rounds=3), tmp_path / "run")
    learn(tmp_path / "run", ModelSettings(), dataset)
    settings: list[dict[str, Any]] = [
        {"hints": [str(scores)]},
        {"searcher": {"name": "predictor", "dataset": str(dataset)}},
    ]
    for options in settings:
        open_job(configure(**options), tmp_path / "next", Monitor())
        open_job(configure(**options, model__dtype="bfloat16"), tmp_path / "next", Monitor())
    change(model, name)
    key = CHANGES[name][2].rpartition(".")[2]
    for options in settings:
        with pytest.raises(ConfigError, match=f"of another model, these differ: {key} "):
            open_job(configure(**options), tmp_path / "next", Monitor())
