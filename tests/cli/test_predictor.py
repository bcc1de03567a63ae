"""`sparsity-search predictor`, on a run that needed no model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from sparsity_search.cli.predictor import predictor
from sparsity_search.errors import ConfigError
from tests.helpers.searched_runs import searched_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return searched_run(tmp_path_factory.mktemp("runs") / "run", rounds=3)


@pytest.fixture
def command() -> Callable[..., None]:
    """Run the command alone, as typer calls it."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(predictor)

    def run(*arguments: object) -> None:
        app(list(map(str, arguments)), standalone_mode=False)

    return run


def test_prints_and_writes(
    command: Callable[..., None],
    run_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "predictor.json"
    command(run_dir, "--out", out)
    told = capsys.readouterr().out
    assert "Kendall tau" in told
    assert "R2" in told
    assert str(out) in told.replace("\n", "")
    assert json.loads(out.read_text())["kind"] == "predictor"


def test_ranks_have_no_error(
    command: Callable[..., None], run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(run_dir, "--model", "xgboost", "--objective", "rank")
    told = capsys.readouterr().out
    assert "Kendall tau" in told
    assert "R2" not in told
    assert "importance" in told


def test_unknown_model(command: Callable[..., None], run_dir: Path) -> None:
    with pytest.raises(ConfigError, match="ridge"):
        command(run_dir, "--model", "cnn")
