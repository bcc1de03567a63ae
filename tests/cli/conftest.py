from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from sparsity_search.cli.main import main
from sparsity_search.testing.models import save_tiny_model, tiny_text

#: A search that takes a second on the tiny model.
SMALL = (
    *("--set", "data.calibration_length=32", "--set", "data.calibration_sequences=4"),
    *("--set", "data.search_length=16", "--set", "data.search_sequences=8"),
    *("--set", "data.final_length=32", "--set", "data.final_sequences=4"),
    *("--set", "ladder.candidates=4"),
    *("--set", "ladder.rungs=[{tokens: 16, survivors: 2}, {tokens: 64, survivors: 1}]"),
)


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(tiny_text())
    return path


@pytest.fixture
def any_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands begin with a model that does not exist; it is missed when it is loaded."""
    monkeypatch.setattr("sparsity_search.models.io.locating.locate", lambda *_: None)


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Run the command line in this process."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["sparsity-search", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        captured = capsys.readouterr()
        code = exit_.value.code
        return Outcome(code if isinstance(code, int) else int(code is not None), *captured)

    return run
