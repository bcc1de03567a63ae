"""A folder with all that a job on a tiny model reads."""

from __future__ import annotations

from pathlib import Path

from sparsity_search.testing.models import save_tiny_model, tiny_text


def make_tiny_folder(path: Path) -> Path:
    """Save a tiny model as ``tiny`` and a text as ``text.txt``, and return the folder."""
    save_tiny_model(path / "tiny")
    (path / "text.txt").write_text(tiny_text())
    return path
