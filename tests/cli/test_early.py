"""What is told before torch is imported, which takes seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sparsity_search.cli import options
from sparsity_search.cli.declaring import Given

#: Wrong options, and what the message names.
WRONG = (
    ("--plan", "wieghts", "did you mean 'weights'"),
    ("--plan", "no.yaml", "no.yaml"),
    ("--space", "per_lniear", "did you mean 'per_linear'"),
    ("--initial", "cfps", "did you mean 'cfsp'"),
    ("--initial", "no.json", "no.json"),
    ("--hints", "fihser", "did you mean 'fisher'"),
    ("--hints", "gradiants", "did you mean 'gradients'"),
    ("--hints", "no.json", "no.json"),
    ("--calibration", "file:no.txt", "no.txt"),
    ("--search-text", "flie:no.txt", "flie:no.txt"),
    ("--final-text", "file:no.jsonl", "no.jsonl"),
)


def test_names_and_files_are_checked_without_torch(model: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from sparsity_search.cli.main import main
for option, value, _ in {WRONG!r}:
    sys.argv = ["x", "search", {str(model)!r}, "--sparsity", "0.5", option, value]
    try:
        main()
    except SystemExit as end:
        assert end.code == 2, (option, value, end.code)
    assert "torch" not in sys.modules, (option, value)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(WRONG)
    for line, (option, value, words) in zip(lines, WRONG, strict=True):
        assert words in line, (option, value, line)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("loaded", [False, True])
def test_loading_of_libraries_is_told(
    model: Path,
    loaded: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not loaded:
        monkeypatch.delitem(sys.modules, "torch")
    Given([options.MODEL], {"model": str(model)}).load()
    assert capsys.readouterr().err == ("" if loaded else "load libraries …\n")


def test_keys_of_other_commands_are_left_to_them(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    file.write_text("plan: elsewhere.yaml\ndata: {search_text: 'file:elsewhere.txt'}\n")
    given = Given([options.MODEL, options.CONFIG], {"model": str(model), "config": file})
    assert given.load().plan == "elsewhere.yaml"
