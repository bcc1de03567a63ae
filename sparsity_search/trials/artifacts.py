"""Files that belong to a study, as artefacts of Optuna: optuna-dashboard shows them."""

from __future__ import annotations

from pathlib import Path

import optuna
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta, upload_artifact
from optuna.storages import BaseStorage


def attach(storage: BaseStorage, name: str, file: Path, folder: Path) -> None:
    """Keep a file as an artefact of a study; one that has the same contents is kept once.

    Args:
        storage: Where the study is.
        name: Name of the study; without such a study nothing happens.
        file: The file.
        folder: Folder of all artefacts, for ``optuna-dashboard --artifact-dir``.
    """
    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        return
    kept = [folder / meta.artifact_id for meta in get_all_artifact_meta(study)]
    content = file.read_bytes()
    if any(copy.is_file() and copy.read_bytes() == content for copy in kept):
        return
    folder.mkdir(exist_ok=True)
    store = FileSystemArtifactStore(str(folder))
    upload_artifact(artifact_store=store, file_path=str(file), study_or_trial=study)
