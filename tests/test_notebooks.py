"""Every notebook keeps its outputs, and runs from top to bottom on a tiny model."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from sparsity_search.testing.models import save_tiny_model

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
#: The first code cell of a notebook sets these; a test sets smaller ones.
SMALL = {"MODEL": "./tiny", "LENGTH": 16, "ROUNDS": 2, "MINUTES": 0.1}
#: Most bytes of a notebook with its outputs.
LARGEST = 600_000

each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def read_code(notebook: Path) -> list[dict[str, Any]]:
    """Return the code cells."""
    cells = json.loads(notebook.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def read_python(cell: dict[str, Any]) -> str:
    """Return the source of a cell without the lines that only notebooks understand."""
    return "".join(line for line in cell["source"] if not line.startswith("%"))


def shows(cell: dict[str, Any]) -> bool:
    """Return whether a cell ends with a value, or prints."""
    source = read_python(cell)
    last = ast.parse(source).body[-1]
    calls = isinstance(last, ast.Expr) and isinstance(last.value, ast.Call)
    return "print(" in source or (isinstance(last, ast.Expr) and not calls)


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@each_notebook
def test_outputs_are_kept(notebook: Path) -> None:
    assert notebook.stat().st_size < LARGEST
    assert not re.search(r"/(home|root|tmp|work)/", notebook.read_text())
    for cell in read_code(notebook):
        kinds = {output["output_type"] for output in cell["outputs"]}
        assert "error" not in kinds
        assert not [o for o in cell["outputs"] if o.get("name") == "stderr"]
        assert kinds or not shows(cell), "".join(cell["source"])


@pytest.mark.slow
@each_notebook
def test_a_notebook_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [read_python(cell) for cell in read_code(notebook)]
    save_tiny_model(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    exec(sources[0], namespace)
    namespace.update({name: SMALL[name] for name in SMALL if name in namespace})
    for number, source in enumerate(sources[1:], start=1):
        exec(compile(source, f"{notebook.name}, code cell {number}", "exec"), namespace)
    assert (tmp_path / "runs").is_dir()
