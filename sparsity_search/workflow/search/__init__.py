"""The main job: the steps of a plan, and the best candidate of them as a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from optuna.storages import BaseStorage

from sparsity_search.config.schema import RunConfig
from sparsity_search.engine.job import SearchJob
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.opening import open_job
from sparsity_search.engine.plugins import find_kind
from sparsity_search.engine.stages import begin, run_stages
from sparsity_search.engine.workers import share_cores
from sparsity_search.plans.plan import Plan, choose_minutes, resolve_plan
from sparsity_search.plans.schedule import Schedule
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.report import write_report
from sparsity_search.report.pages import can_draw_pages
from sparsity_search.runs.directory import RunDirectory
from sparsity_search.runs.trail import Trail
from sparsity_search.study.claims import Claims
from sparsity_search.trials.artifacts import attach
from sparsity_search.trials.storages import open_database, open_journal
from sparsity_search.workflow.search.building import check_plan
from sparsity_search.workflow.search.clock import Clock
from sparsity_search.workflow.search.costs import StepCosts, describe_schedule
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
    monitor = monitor or Monitor()
    config, plan = resolve_plan(config, find_kind(config))
    clock = Clock(choose_minutes(config, plan))
    share_cores(config)
    with_report = can_draw_pages()
    job = _open(config, plan, out, monitor)
    storage = open_database(config.study.storage) if config.study.storage else None
    with job.directory.lock():
        if config.study.workers > 1:
            job = replace(job, claims=Claims(job.directory.claims_folder))
        begin(job, command)
        trail = Trail(job.directory.steps_file, job.space.layout)
        clock.resume(trail.seconds)
        costs = StepCosts.measure(job, plan)
        monitor.planned(describe_schedule(job, plan, costs, clock))
        run = PlanRun(job, plan, clock, trail, costs, partial(run_stages, storage=storage))
        run.run()
        shipped = ship(run)
        if with_report:
            write_report(out, config.study.storage)
            _attach_profile(job.directory, storage)
    return shipped


def _attach_profile(directory: RunDirectory, database: BaseStorage | None) -> None:
    """Keep the figure of the profile with the study that ran last, if one ran."""
    figure = directory.plot_file("profile")
    if figure.exists() and (database or directory.journal_file.exists()):
        storage = database or open_journal(directory.journal_file)
        attach(storage, directory.read_studies()[-1], figure, directory.artifacts_folder)


def preview(config: RunConfig, out: Path, monitor: Monitor | None = None) -> Schedule:
    """Return what `search` would do here; nothing is written.

    Raises:
        SparsitySearchError: Something given is not legal.
    """
    config, plan = resolve_plan(config, find_kind(config))
    clock = Clock(choose_minutes(config, plan))
    job = _open(config, plan, out, monitor or Monitor())
    clock.resume(Trail(job.directory.steps_file, job.space.layout).seconds)
    return describe_schedule(job, plan, StepCosts.measure(job, plan), clock)


def _open(config: RunConfig, plan: Plan, out: Path, monitor: Monitor) -> SearchJob:
    """Return a search that can run in a folder by a plan."""
    check_plan(config, plan)
    monitor.seconds.clear()  # the record is of this search, not of others that it watched
    return open_job(config, out, monitor)
