"""A worker's job: take part in a search that another process leads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sparsity_search.config.schema import RunConfig
from sparsity_search.engine.fingerprint import identify_study
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.opening import open_job
from sparsity_search.engine.stages import find_present_stage
from sparsity_search.errors import ConfigError
from sparsity_search.runs.directory import RunDirectory
from sparsity_search.runs.record import find_storage
from sparsity_search.study.claims import Claims
from sparsity_search.trials.storages import join_journal, open_database
from sparsity_search.utils.files import check_fingerprint


def work(
    out: Path,
    *,
    device: str | None = None,
    storage: str | None = None,
    monitor: Monitor | None = None,
) -> None:
    """Measure candidates of the stage that a search is in, until that stage ends.

    Args:
        out: The run directory of a search with several workers, which has built its supernet.
        device: Of this worker's model; by default that of the run.
        storage: URL of the run's database, if it has one.
        monitor: Watches the worker.

    Raises:
        ConfigError: There is no such search, or it is not measuring yet.
        RunMismatchError: This process would not measure the same.
    """
    directory = RunDirectory(out)
    config = _adapt(directory.read_config(), device)
    source = find_storage(directory, storage)
    job = open_job(config, out, monitor or Monitor())
    key = identify_study(job)
    stored = directory.read_facts()["fingerprint"]
    check_fingerprint(stored, key.fingerprint, f"the run in {out}")
    opened = join_journal(source) if isinstance(source, Path) else open_database(source)
    job = replace(job, claims=Claims(directory.claims_folder))
    stage = find_present_stage(job, opened, key)
    if stage is None or not stage.ready():
        raise ConfigError(f"the search in {out} is not measuring yet: its supernet is not built")
    stage.run()


def _adapt(config: RunConfig, device: str | None) -> RunConfig:
    """Return a worker's configuration: its device, and no workers of its own.

    Raises:
        ConfigError: The search expects no workers.
    """
    if config.study.workers < 2:
        raise ConfigError("the search was started for one worker: give it --workers")
    model = config.model.model_copy(update={"device": device} if device else {})
    study = config.study.model_copy(update={"workers": 1})
    return config.model_copy(update={"model": model, "study": study})
