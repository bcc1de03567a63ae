"""Hints are measured with the run's pruner and seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsity_search.allocators.knapsack import KnapsackAllocator
from sparsity_search.config.load import load_config
from sparsity_search.engine.hints import measure_hint, predict_hint
from sparsity_search.engine.job import SearchJob
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.opening import open_job
from sparsity_search.pruners.magnitude import MagnitudePruner
from sparsity_search.pruners.wanda import WandaPruner
from sparsity_search.sensitivities.fisher import FisherSensitivity
from tests.helpers.tiny_folder import make_tiny_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_folder(tmp_path_factory.mktemp("hints"))


def opened(folder: Path, **options: Any) -> SearchJob:
    given = {
        "model.name": str(folder / "tiny"),
        "data.calibration": f"file:{folder / 'text.txt'}",
        "data.calibration_length": 16,
        "data.calibration_sequences": 4,
        "data.search_length": 16,
        "data.final_length": 16,
        "ladder.rungs": [{"tokens": 16, "survivors": 1}],
        "budget.sparsity": 0.5,
        "hints": ["fisher"],
    }
    return open_job(load_config(None, {**given, **options}), folder / "run", Monitor())


@pytest.mark.parametrize(("pruner", "seed"), [("wanda", 0), ("wanda", 7), ("magnitude", 7)])
def test_pruner_and_seed_are_those_of_the_run(folder: Path, pruner: str, seed: int) -> None:
    job = opened(folder, **{"pruner.name": pruner, "study.seed": seed})
    found = measure_hint(job, "fisher", job.space)
    kind = {"wanda": WandaPruner, "magnitude": MagnitudePruner}[pruner]
    matching = []
    for other in (WandaPruner(), MagnitudePruner()):
        for number in (0, 7):
            allocator = KnapsackAllocator(
                sensitivity=FisherSensitivity(), pruner=other, seed=number
            )
            scores = allocator.measure(job.session.subject, job.session.text["calibration"])
            losses = predict_hint("fisher", scores, job.space).losses
            if all(map(np.array_equal, losses, found.losses)):
                matching.append((type(other), number))
    assert matching == [(kind, seed)]
