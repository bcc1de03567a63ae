"""Every command without an extra: one line, before the work, or a result without pages."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import SMALL, Outcome

pytestmark = pytest.mark.usefixtures("any_model")

Cli = Callable[..., Outcome]
Without = Callable[[str], None]


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Without:
    """Make a package look as if it were not installed."""
    return lambda name: monkeypatch.setitem(sys.modules, name, None)


def assert_reported_once(outcome: Outcome, missing: str) -> None:
    """Assert that the first line of the errors, and no other, names the extra."""
    first, *others = outcome.err.splitlines()
    assert missing in first
    assert "sparsity-search[report]" in first
    assert not any("sparsity-search[report]" in line for line in others)


@pytest.mark.parametrize("missing", ["matplotlib", "plotly", "jinja2"])
def test_a_search_without_pages(
    cli: Cli, without: Without, model: Path, text: Path, tmp_path: Path, missing: str
) -> None:
    without(missing)
    run = tmp_path / "run"
    options = ("--sparsity", 0.5, "--rounds", 1, *SMALL, "--calibration", f"file:{text}")
    outcome = cli("search", model, *options, "--out", run)
    assert outcome.code == 0, outcome.err
    assert_reported_once(outcome, missing)
    assert json.loads((run / "profile.json").read_text())
    assert not (run / "report.html").exists()
    assert "report.html" not in outcome.out

    outcome = cli("report", run)
    assert outcome.code == 2
    assert "uniform" in outcome.out, "the table needs no extra"
    assert outcome.err.count("\n") == 1
    assert "sparsity-search[report]" in outcome.err


def test_a_comparison_without_pages(
    cli: Cli, without: Without, model: Path, text: Path, tmp_path: Path
) -> None:
    without("matplotlib")
    out = tmp_path / "compared"
    options = ("--allocators", "uniform", "--sparsity", 0.5, *SMALL[:4], *SMALL[8:12])
    outcome = cli("compare", model, *options, "--calibration", f"file:{text}", "--out", out)
    assert outcome.code == 0, outcome.err
    assert_reported_once(outcome, "matplotlib")
    assert {file.name for file in out.iterdir()} >= {"compare.json", "table.csv", "table.md"}
    assert not (out / "report.html").exists()
    assert "report.html" not in outcome.out
    assert cli("report", out).code == 2


@pytest.mark.parametrize(
    "command",
    [
        ("search", "--sparsity", 0.5),
        ("front", "--sparsity", "0.4,0.5"),
        ("compare", "--sparsity", 0.5, "--allocators", "uniform"),
    ],
)
def test_missing_pages_are_reported_before_the_work(
    cli: Cli, without: Without, text: Path, tmp_path: Path, command: tuple[object, ...]
) -> None:
    without("matplotlib")
    name, *options = command
    outcome = cli(name, tmp_path / "absent", *options, "--out", tmp_path / "run")
    assert outcome.code == 2, "there is no such model"
    assert_reported_once(outcome, "matplotlib")


def test_a_front_without_figures(
    cli: Cli, without: Without, model: Path, text: Path, tmp_path: Path
) -> None:
    without("matplotlib")
    out = tmp_path / "front"
    options = ("--sparsity", "0.4,0.5", "--rounds", 1, *SMALL, "--calibration", f"file:{text}")
    outcome = cli("front", model, *options, "--out", out)
    assert outcome.code == 0, outcome.err
    assert_reported_once(outcome, "matplotlib")
    assert (out / "front.csv").exists()
    assert not (out / "front.png").exists()


@pytest.mark.parametrize(
    ("missing", "extra", "options"),
    [
        ("xgboost", "predictors", ["--searcher", "gbdt"]),
        ("sklearn", "predictors", ["--searcher", "predictor", "--set", "searcher.model=sklearn"]),
        ("accelerate", "offload", ["--offload"]),
        ("datasets", "data", ["--calibration", "hub:someone/text"]),
        ("pyarrow", "data", ["--calibration", "file:{folder}/text.parquet"]),
        ("lm_eval", "tasks", ["--evaluator", "tasks", "--set", "evaluator.tasks=[arc_easy]"]),
    ],
)
def test_a_search_that_cannot_work_is_refused_at_once(
    cli: Cli,
    without: Without,
    model: Path,
    tmp_path: Path,
    missing: str,
    extra: str,
    options: list[str],
) -> None:
    without(missing)
    (tmp_path / "text.parquet").touch()
    options = [option.format(folder=tmp_path) for option in options]
    outcome = cli("search", model, "--sparsity", 0.5, *options, "--out", tmp_path / "run")
    assert outcome.code == 2
    (error,) = [line for line in outcome.err.splitlines() if "warning" not in line]
    assert missing in error
    assert f"sparsity-search[{extra}]" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("missing", ["gguf", "accelerate"])
def test_gguf_files(cli: Cli, without: Without, tmp_path: Path, missing: str) -> None:
    without(missing)
    (tmp_path / "model.gguf").touch()
    outcome = cli("inspect", tmp_path / "model.gguf")
    assert outcome.code == 2
    assert missing in outcome.err
    assert "sparsity-search[gguf]" in outcome.err


def test_a_predictor_of_trees(cli: Cli, without: Without, tmp_path: Path) -> None:
    without("xgboost")
    outcome = cli("predictor", tmp_path, "--model", "xgboost")
    assert outcome.code == 2
    assert "sparsity-search[predictors]" in outcome.err
