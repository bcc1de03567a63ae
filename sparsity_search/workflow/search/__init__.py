"""The main job: search a profile, compare it with others as shipped, and write a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sparsity_search.config.schema import RunConfig
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.opening import open_job
from sparsity_search.engine.stages import run_stages
from sparsity_search.engine.workers import share_cores
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.report import write_report
from sparsity_search.report.pages import can_draw_pages
from sparsity_search.runs.stage_spaces import SEARCHED
from sparsity_search.study.claims import Claims
from sparsity_search.trials.storages import open_database
from sparsity_search.workflow.search.ship import ship


def search(
    config: RunConfig, out: Path, *, command: Sequence[str] = (), monitor: Monitor | None = None
) -> SparsityProfile | None:
    """Search a profile and leave a run directory; called again, it goes on where it was.

    Args:
        config: Everything that the run depends on.
        out: The run directory.
        command: The command line, for the record.
        monitor: Watches the job.

    Returns:
        The profile of the checkpoint, or None if the monitor stopped the search.

    Raises:
        SparsitySearchError: Something given is not legal; nothing is written then.
    """
    share_cores(config)
    with_report = can_draw_pages()
    monitor = monitor or Monitor()
    monitor.seconds.clear()  # the record is of this search, not of others that it watched
    job = open_job(config, out, monitor)
    storage = open_database(config.study.storage) if config.study.storage else None
    with job.directory.lock():
        if config.study.workers > 1:
            job = replace(job, claims=Claims(job.directory.claims_folder))
        searched = run_stages(job, storage, command)
        if searched is None:
            return None
        profiles = {"uniform": job.space.base, **searched.starts, SEARCHED: searched.profile}
        shipped = ship(job, profiles, searched)
        if with_report:
            write_report(out, config.study.storage)
    return shipped
