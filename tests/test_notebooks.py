"""Every notebook runs from top to bottom, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparsity_search.testing.models import save_tiny_model

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
#: The first code cell of a notebook sets these; a test sets smaller ones.
SMALL = {"MODEL": "./tiny", "LENGTH": 16, "ROUNDS": 2}


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = json.loads(notebook.read_text())["cells"]
    assert all(not cell.get("outputs") for cell in cells), "outputs are stripped"
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    save_tiny_model(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    exec(sources[0], namespace)
    namespace.update({name: SMALL[name] for name in SMALL if name in namespace})
    for number, source in enumerate(sources[1:], start=1):
        exec(compile(source, f"{notebook.name}, code cell {number}", "exec"), namespace)
    assert (tmp_path / "runs").is_dir()
