from __future__ import annotations

from pathlib import Path

import optuna
from optuna.artifacts import get_all_artifact_meta

from sparsity_search.trials.artifacts import attach
from sparsity_search.trials.storages import open_journal


def test_a_file_is_kept_once_and_a_new_one_beside_it(tmp_path: Path) -> None:
    journal, folder, figure = tmp_path / "journal.log", tmp_path / "kept", tmp_path / "a.png"
    optuna.create_study(storage=open_journal(journal), study_name="search")
    for content in (b"first", b"first", b"second", b"first"):
        figure.write_bytes(content)
        attach(open_journal(journal), "search", figure, folder)
    study = optuna.load_study(study_name="search", storage=open_journal(journal))
    kept = get_all_artifact_meta(study)
    assert [meta.filename for meta in kept] == ["a.png", "a.png"]
    assert {(folder / meta.artifact_id).read_bytes() for meta in kept} == {b"first", b"second"}


def test_no_study_no_artefact(tmp_path: Path) -> None:
    figure = tmp_path / "a.png"
    figure.write_bytes(b"x")
    attach(open_journal(tmp_path / "journal.log"), "search", figure, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
