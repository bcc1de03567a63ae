"""The main job: the steps of a plan, and the best candidate of them as a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from sparsity_search.config.schema import RunConfig
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.opening import open_job
from sparsity_search.engine.stages import begin, run_stages
from sparsity_search.engine.workers import share_cores
from sparsity_search.plans.plan import resolve_plan
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.report import write_report
from sparsity_search.report.pages import can_draw_pages
from sparsity_search.runs.trail import Trail
from sparsity_search.study.claims import Claims
from sparsity_search.trials.storages import open_database
from sparsity_search.workflow.search.clock import Clock
from sparsity_search.workflow.search.costs import StepCosts
from sparsity_search.workflow.search.ship import ship
from sparsity_search.workflow.search.steps import PlanRun


def search(
    config: RunConfig, out: Path, *, command: Sequence[str] = (), monitor: Monitor | None = None
) -> SparsityProfile:
    """Search a profile and leave a run directory; called again, it goes on where it was.

    Args:
        config: Everything that the run depends on.
        out: The run directory.
        command: The command line, for the record.
        monitor: Watches the job; if it stops the job, the best profile so far is shipped.

    Returns:
        The profile of the checkpoint.

    Raises:
        SparsitySearchError: Something given is not legal; nothing is written then.
    """
    limit = config.study.time_limit
    clock = Clock(None if limit is None else 60 * limit)
    config, plan = resolve_plan(config)
    share_cores(config)
    with_report = can_draw_pages()
    monitor = monitor or Monitor()
    monitor.seconds.clear()  # the record is of this search, not of others that it watched
    job = open_job(config, out, monitor)
    storage = open_database(config.study.storage) if config.study.storage else None
    with job.directory.lock():
        if config.study.workers > 1:
            job = replace(job, claims=Claims(job.directory.claims_folder))
        begin(job, command)
        trail = Trail(job.directory.steps_file, job.space.layout)
        clock.resume(trail.seconds)
        costs, study = StepCosts.measure(job, plan), partial(run_stages, storage=storage)
        run = PlanRun(job, plan, clock, trail, costs, study)
        run.run()
        shipped = ship(run)
        if with_report:
            write_report(out, config.study.storage)
    return shipped
