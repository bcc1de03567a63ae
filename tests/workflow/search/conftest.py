from __future__ import annotations

from pathlib import Path

import pytest

from sparsity_search.config.load import load_config
from sparsity_search.engine.job import SearchJob
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.opening import open_job
from sparsity_search.models.io.saving import save_checkpoint
from sparsity_search.testing.models import (
    save_tiny_model,
    tiny_mixtral,
    tiny_text,
    tiny_tokenizer,
)

SMALL = {
    "budget.sparsity": 0.6,
    "model.dtype": "float32",
    "initial": [],
    "pruner.name": "magnitude",
    "data.calibration_length": 16,
    "data.calibration_sequences": 4,
    "data.search_length": 16,
    "data.search_sequences": 8,
    "data.final_length": 16,
    "data.final_sequences": 8,
    "ladder.candidates": 4,
    "ladder.rungs": [{"tokens": 16, "survivors": 2}, {"tokens": 64, "survivors": 1}],
}


@pytest.fixture
def job(tmp_path: Path) -> SearchJob:
    return open_small(save_tiny_model(tmp_path / "tiny"), tmp_path)


@pytest.fixture
def mixture_job(tmp_path: Path) -> SearchJob:
    """A search in a model with experts."""
    save_checkpoint(tiny_mixtral(), tiny_tokenizer(), tmp_path / "tiny")
    return open_small(tmp_path / "tiny", tmp_path)


def open_small(folder: Path, tmp_path: Path) -> SearchJob:
    (tmp_path / "text.txt").write_text(tiny_text())
    text = {"data.calibration": f"file:{tmp_path / 'text.txt'}"}
    config = load_config(None, {**SMALL, **text, "model.name": str(folder)})
    return open_job(config, tmp_path / "run", Monitor())
