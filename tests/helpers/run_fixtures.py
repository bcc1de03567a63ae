"""A finished run without a model, and its record, as fixtures."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sparsity_search.runs.record import RunRecord
from sparsity_search.testing.runs import make_run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run", rounds=3)


@pytest.fixture(scope="session")
def record(finished: Path) -> RunRecord:
    return RunRecord.read(finished)


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")
