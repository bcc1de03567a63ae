"""Statistics that runs share: results are those without them, and no text is run again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from sparsity_search.config.load import load_config
from sparsity_search.config.schema import RunConfig
from sparsity_search.data.sequences import Request
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.session import open_session
from sparsity_search.errors import ConfigError
from sparsity_search.models.running import walk
from sparsity_search.workflow import compare as comparing
from sparsity_search.workflow import search as searching
from sparsity_search.workflow.allocate import allocate
from sparsity_search.workflow.compare import compare
from sparsity_search.workflow.compare.cases import Plan
from sparsity_search.workflow.search import search
from sparsity_search.workflow.sensitivity import sensitivity
from tests.helpers.tiny_folder import make_tiny_folder

Configure = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_folder(tmp_path_factory.mktemp("session"))


@pytest.fixture
def configure(folder: Path) -> Configure:
    def configured(statistics: Path | None = None, **options: Any) -> RunConfig:
        given = {
            "model.name": str(folder / "tiny"),
            "data.calibration": f"file:{folder / 'text.txt'}",
            "data.calibration_length": 16,
            "data.calibration_sequences": 4,
            "data.search_length": 16,
            "data.final_length": 24,
            "data.final_sequences": 3,
            "data.statistics": statistics and str(statistics),
            "ladder.candidates": 4,
            "ladder.rungs": [{"tokens": 16, "survivors": 1}],
            "study.rounds": 1,
            "budget.sparsity": 0.6,
            "supernet.propagate": "dense",
            "initial": ["owl"],
        }
        return load_config(None, {**given, **options})

    return configured


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Models that text is run through in walks."""
    found: list[nn.Module] = []
    inner = walk.BlockRunner

    def runner(subject: Any, tokens: Any) -> Any:
        found.append(subject.model)
        return inner(subject, tokens)

    monkeypatch.setattr(walk, "BlockRunner", runner)
    return found


@pytest.fixture(autouse=True)
def _no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures out, which take most of the time."""
    monkeypatch.setattr(comparing, "write_comparison", lambda _: None)
    monkeypatch.setattr(searching, "write_report", lambda *_: None)


@pytest.mark.slow
def test_rows_of_a_comparison(configure: Configure, tmp_path: Path) -> None:
    def compared(name: str, statistics: Path | None = None) -> dict[str, dict[str, Any]]:
        config = configure(statistics)
        pruners = {
            pruner: configure(**{"pruner.name": pruner}).pruner
            for pruner in ("wanda", "sparsegpt")
        }
        allocators = ("owl", "dlp", "essential")
        plan = Plan(config=config, allocators=allocators, pruners=pruners, sparsities=(0.6,))
        compare(plan, tmp_path / name)
        files = (tmp_path / name / "rows").glob("*.json")
        return {file.stem: json.loads(file.read_text()) for file in files}

    def results(rows: dict[str, dict[str, Any]]) -> Any:
        costs = ("allocation", "pruning", "checksum")
        return {k: {f: v for f, v in row.items() if f not in costs} for k, row in rows.items()}

    alone = compared("alone")
    first, second = (compared(name, tmp_path / "statistics") for name in ("first", "second"))
    assert results(first) == results(second) == results(alone)
    assert all(row["error"] is None for row in alone.values())
    passes = {
        key: [rows[key]["allocation"]["passes"] for rows in (alone, first, second)]
        for key in alone
    }
    assert passes["wanda-60-owl-seed0"] == [1, 1, 0]
    assert passes["wanda-60-dlp-seed0"] == [1, 0, 0]
    assert passes["wanda-60-essential-seed0"] == [1, 1, 0]
    assert passes["sparsegpt-60-essential-seed0"] == [1, 0, 0]
    # and a comparison may go on with another folder, or with none
    assert results(compared("second")) == results(alone)


@pytest.mark.slow
def test_searches(configure: Configure, tmp_path: Path, texts: list[nn.Module]) -> None:
    def searched(name: str, statistics: Path | None = None, **options: Any) -> tuple[Any, int]:
        texts.clear()
        search(configure(statistics, **options), tmp_path / name)
        results = json.loads((tmp_path / name / "results.json").read_text())
        return ((tmp_path / name / "profile.json").read_bytes(), results["rows"]), len(texts)

    alone, runs = searched("alone")
    first, gathered = searched("first", tmp_path / "statistics")
    second, reused = searched("second", tmp_path / "statistics")
    assert first == second == alone
    assert gathered == runs - 1  # Wanda's supernet has the statistics of owl
    assert reused == gathered - 1
    assert searched("first")[0] == alone
    searched("other", tmp_path / "statistics", **{"pruner.name": "sparsegpt", "initial": []})
    before = len(texts)
    searched("another", tmp_path / "statistics", **{"pruner.name": "sparsegpt", "initial": [],
                                                    "space": "per_block"})  # fmt: skip
    assert len(texts) == before - 1


@pytest.mark.parametrize("job", ["allocate", "sensitivity"])
def test_jobs(job: str, configure: Configure, tmp_path: Path, texts: list[nn.Module]) -> None:
    settings = {"pruner.name": "sparsegpt", "sensitivity.name": "layer_error"}
    found = []
    for name, statistics in (("alone", None), ("first", "kept"), ("second", "kept")):
        texts.clear()
        out = tmp_path / f"{name}.json"
        config = configure(statistics and tmp_path / statistics, **settings)
        allocate(config, "owl", out) if job == "allocate" else sensitivity(config, out)
        found.append((out.read_bytes(), len(texts)))
    assert found == [(found[0][0], runs) for runs in (1, 1, 0)]


def test_a_folder_for_statistics_that_cannot_be_made(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = configure(tmp_path / "file" / "inner")
    requests = [Request("calibration", "self", 4, 16)]
    with pytest.raises(ConfigError, match=r"data\.statistics .*inner: Not a directory"):
        open_session(config.model, requests, 0, Monitor(), statistics=config.data.statistics)
