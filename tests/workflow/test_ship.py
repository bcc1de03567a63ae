"""What is left of a run that is killed while its results are replaced by later ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparsity_search.config.load import load_config
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.report import RunRecord
from sparsity_search.report.table import summarise
from sparsity_search.runs.directory import RunDirectory
from sparsity_search.testing.models import save_tiny_model
from sparsity_search.utils.reading import read_json
from sparsity_search.utils.versioned import VersionedJson
from sparsity_search.workflow.search import search
from sparsity_search.workflow.verify import verify

SMALL = (
    *("data.calibration_length=32", "data.calibration_sequences=4", "data.search_length=16"),
    *("data.search_sequences=4", "data.final_length=32", "data.final_sequences=4"),
    *("ladder.candidates=4", "ladder.rungs=[{tokens: 64, survivors: 1}]", "initial=[uniform]"),
)


def extend(model: Path, out: Path, rounds: int) -> SparsityProfile:
    given = {"model.name": str(model), "budget.sparsity": 0.6, "study.rounds": rounds}
    found = search(load_config(None, given, SMALL), out)
    assert found is not None
    return found


def test_a_run_is_unfinished_while_its_checkpoint_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, run = save_tiny_model(tmp_path / "tiny"), RunDirectory(tmp_path / "run")
    first = extend(model, run.path, 0)
    with monkeypatch.context() as patch:
        write = VersionedJson.write

        def die(kind: VersionedJson, path: Path, value: Any) -> None:
            if path == run.profile_file:
                raise KeyboardInterrupt
            write(kind, path, value)

        patch.setattr(VersionedJson, "write", die)
        with pytest.raises(KeyboardInterrupt):
            extend(model, run.path, 4)
    # the old profile lies beside the new checkpoint, which has its own
    checkpoint = load_config(None, {"model.name": str(run.checkpoint_folder)})
    found = verify(checkpoint).profile
    assert found.removed != first.removed
    assert read_json(run.profile_file)["units"] == first.to_json()["units"]
    record = RunRecord.read(run.path)
    assert record.results is None
    assert record.shipped is None
    assert summarise(record).startswith("The search is not finished")
    last = extend(model, run.path, 4)
    assert last.removed == found.removed
    assert run.profile_file.read_bytes() == (run.checkpoint_folder / "profile.json").read_bytes()
    assert RunRecord.read(run.path).shipped == last
