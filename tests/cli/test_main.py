"""Every failure of the command line is one line on stderr, with an exit code that says whose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from sparsity_search.cli import main as module
from sparsity_search.errors import ConfigError, MachineError

from .conftest import Outcome

Cli = Callable[..., Outcome]


@pytest.mark.usefixtures("any_model")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["searh"], "No such command 'searh'. Did you mean 'search'?; see sparsity-search --help"),
        (["search"], "Missing argument 'model'; see sparsity-search search --help"),
        (["search", "m", "--sed", "1"], "No such option: --sed"),
        (["search", "m", "--seed", "x"], "'--seed'"),
        (["ls", "a", "b"], "extra argument"),
        (["evaluate", "m", "--text", "t", "--length", "1"], "--length"),
        (["evaluate", "m", "--text", "t", "--sequences", "-5"], "--sequences"),
        (["recommend", "m", "--minutes", "inf"], "--minutes must be a number from 0"),
        (["report", "r\udcff"], "is not UTF-8 text"),
        (["ls", "x" * 10**6], "xxx"),
        (["ls", "red\x1b[31m\nline"], "red"),
    ],
)
def test_a_wrong_command_line_is_one_line(cli: Cli, arguments: list[str], words: str) -> None:
    outcome = cli(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("sparsity-search: ")
    assert words in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert len(outcome.err) < 1500
    assert "\x1b" not in outcome.err


def test_without_a_command_it_helps(cli: Cli) -> None:
    outcome = cli()
    assert (outcome.code, outcome.err) == (0, "")
    assert "Commands" in outcome.out


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("bad"), 2, "bad"),
        (MachineError("cannot write x: full"), 1, "cannot write x: full"),
        (PermissionError(13, "Permission denied", "x"), 1, "Permission denied: x"),
        (MemoryError(), 1, "not enough memory"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_exit_codes(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, line: str
) -> None:
    def fail() -> None:
        raise error

    app = typer.Typer()
    app.callback()(lambda: None)
    app.command()(fail)
    monkeypatch.setattr(module, "app", app)
    outcome = cli("fail")
    assert outcome.code == code
    assert line in outcome.err
    assert len(outcome.err.splitlines()) <= 1


@pytest.mark.parametrize(
    ("command", "out", "words"),
    [
        (["allocate", "m", "--allocator", "owl", "--sparsity", "0.5"], "", "is a folder"),
        (["sensitivity", "m"], "file/x.json", "Not a directory"),
        (["convert", "p.json"], "file/x.json", "Not a directory"),
        (["prune", "m", "--sparsity", "0.5"], "file", "is a file"),
        (["search", "m", "--sparsity", "0.5"], "file/x", "Not a directory"),
        (["front", "m", "--sparsity", "0.5,0.6"], "file/x", "Not a directory"),
        (["compare", "m", "--allocators", "owl", "--sparsity", "0.5"], "file", "is a file"),
        (["solve", "s.json", "--sparsity", "0.5"], "file/x", "Not a directory"),
        (["predictor", "r"], "file/x", "Not a directory"),
    ],
)
def test_out_is_checked_before_anything_else(
    cli: Cli, tmp_path: Path, command: list[str], out: str, words: str
) -> None:
    (tmp_path / "file").touch()
    outcome = cli(*command, "--out", tmp_path / out)
    assert outcome.code == 2
    assert "--out" in outcome.err
    assert words in outcome.err
