"""Run the notebooks in a temporary folder, and keep their outputs: ``make notebooks``.

python notebooks/run.py [NOTEBOOK ...]
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent


def run(file: Path) -> None:
    """Run a notebook, and write it with its outputs, without messages on stderr."""
    notebook: Any = nbformat.read(file, as_version=4)  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory() as folder:
        where = {"metadata": {"path": folder}}
        client = NotebookClient(notebook, timeout=None, record_timing=False, resources=where)
        client.execute()
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.pop("id", None)  # a new one with each run
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    notebook.nbformat_minor = 4
    nbformat.write(notebook, file)  # type: ignore[no-untyped-call]


def main() -> None:
    os.environ |= {"TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore"}
    for file in map(Path, sys.argv[1:] or sorted(HERE.glob("*.ipynb"))):
        print(file.name, flush=True)
        run(file)


if __name__ == "__main__":
    main()
