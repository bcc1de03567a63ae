"""What a search is told by: its fingerprint, without a model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from sparsity_search.config.load import load_config
from sparsity_search.engine.fingerprint import identify_study
from sparsity_search.engine.job import SearchJob
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.plugins import Plugins
from sparsity_search.profiles.scores import Scores
from sparsity_search.runs.directory import RunDirectory
from sparsity_search.runs.scores import save_scores
from sparsity_search.searchers.bases.dataset import Dataset
from sparsity_search.testing.problems import toy_space
from sparsity_search.trials.history import Fidelity
from sparsity_search.utils.files import write_json

SPACE = toy_space()


def fingerprint(*overrides: str) -> dict[str, Any]:
    config = load_config(None, {"model.name": "tiny", "initial": []}, overrides)
    model = SimpleNamespace(dtype=torch.float32, device=torch.device("cpu"))
    session = SimpleNamespace(
        loaded=SimpleNamespace(identity={"model": "0"}, model=model, saved_as=model.dtype),
        text_facts={},
    )
    job = SearchJob(
        config, Plugins.of(config), cast(Any, session), SPACE, RunDirectory(Path()), Monitor()
    )
    return dict(identify_study(job).fingerprint)


def save_dataset(path: Path, score: float) -> str:
    write_json(path, Dataset(SPACE.layout, [SPACE.base], [score], [Fidelity(64)]).to_json())
    return str(path)


def save_losses(path: Path, loss: float) -> str:
    counts = (np.array([0, 10]),) * len(SPACE.layout)
    losses = (np.array([0.0, loss]),) * len(SPACE.layout)
    save_scores(path, Scores(SPACE.layout, counts, losses))
    return str(path)


@pytest.mark.parametrize(
    ("save", "override", "key"),
    [
        (save_dataset, "searcher={{name: predictor, dataset: {}}}", "searcher.data"),
        (save_losses, "hints=[{}]", "hints"),
    ],
)
def test_contents_of_files_count(tmp_path: Path, save: Any, override: str, key: str) -> None:
    """A file that was written anew with other contents tells itself, and only itself."""
    setting = override.format(save(tmp_path / "file.json", 1.0))
    before = fingerprint(setting)
    save(tmp_path / "file.json", 1.0)
    assert fingerprint(setting) == before
    save(tmp_path / "file.json", 2.0)
    after = fingerprint(setting)
    assert {name for name in {**before, **after} if before.get(name) != after.get(name)} == {key}


def test_without_files_nothing_is_added() -> None:
    plain = fingerprint("searcher=predictor", "hints=[fisher, gradients]")
    assert plain["hints"] == ["fisher", "gradients"]
    assert "searcher.data" not in plain
