"""The main job: search a profile, compare it with others as shipped, and write a checkpoint."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from optuna.storages import BaseStorage

from sparsity_search.config.schema import RunConfig
from sparsity_search.data.sequences import Request
from sparsity_search.engine.crew import share_cores
from sparsity_search.engine.hints import GRADIENTS, check_hints, identity
from sparsity_search.engine.job import Job
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.parameters import (
    allocation_bounds,
    check_parameters,
    parametric_space,
)
from sparsity_search.engine.plugins import Plugins, budget_of, unit_kind
from sparsity_search.engine.prices import check_measure, prices_of
from sparsity_search.engine.session import open_session, search_requests
from sparsity_search.engine.ship import compare
from sparsity_search.engine.stages import Searched, search_stages
from sparsity_search.errors import ConfigError
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.registry import describe
from sparsity_search.report import write_report
from sparsity_search.runs import directory
from sparsity_search.runs.redact import redact
from sparsity_search.runs.starts import AROUND, kept_starts
from sparsity_search.spaces.files import SpaceFile, load_space
from sparsity_search.study.claims import Claims
from sparsity_search.trials.store import database, journal
from sparsity_search.utils.files import digest, write_json


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
    job = open_job(config, out, monitor or Monitor())
    storage = database(config.study.storage) if config.study.storage else None
    with directory.locked(out):
        if config.study.workers > 1:
            job = replace(job, claims=Claims(out / directory.CLAIMS))
        starts, found = find(job, storage, command)
        if found is None:
            return None
        profiles = {"uniform": job.space.base, **starts, "searched": found.profile}
        shipped = compare(job, profiles, found)
        write_report(out, config.study.storage)
    return shipped


def open_job(config: RunConfig, out: Path, monitor: Monitor) -> Job:
    """Load what a search needs, and check that it can be run in ``out``; writes nothing there.

    Raises:
        SparsitySearchError: Something given is not legal.
    """
    space_file, plugins = load_space(config.space).of_levels, Plugins.of(config)
    check_parameters(config)
    budget = budget_of(config, space_file, plugins.pruner)
    _check_stages(config, space_file)
    directory.check_resumable(out, config)
    kind = unit_kind(config, plugins.pruner)
    check_measure(config, kind)
    _check_own_data(config, plugins)
    requests = _requests(config, plugins)
    session = open_session(
        config.model, requests, config.study.seed, monitor, kind, config.data.statistics
    )
    prices = prices_of(config, session.subject, out, monitor)
    space = space_file.build(session.subject.layout, budget, config.budget.bounds, prices)
    job = Job(config, plugins, session, space, out, monitor)
    _check_ladder(job)
    check_hints(config.hints, session.subject.layout, kind)
    return job


def find(
    job: Job, storage: BaseStorage | None = None, command: Sequence[str] = ()
) -> tuple[dict[str, SparsityProfile], Searched | None]:
    """Search, or go on with a search, and leave the comparison of what was found to the caller.

    Args:
        job: The search; the caller owns its run directory (`runs.directory.locked`).
        storage: Where measurements are kept; by default a journal in the run directory.
        command: The command line, for the record.

    Returns:
        The profiles that it started from, by allocator, and what it found; None if the monitor
        stopped it.
    """
    fingerprint = fingerprint_of(job)
    directory.begin(job.out, _facts(job, fingerprint, command))
    if job.config.measure and job.space.prices:
        write_json(job.out / f"{directory.PRICES}.json", job.space.prices.to_json())
    kept = kept_starts(job.out, job.space.layout)
    starts = kept[0] if kept else _initial(job)
    storage = storage or journal(job.out / directory.JOURNAL)
    study = study_name(fingerprint), fingerprint
    return starts, search_stages(job, starts, storage, study)


def _check_own_data(config: RunConfig, plugins: Plugins) -> None:
    """Check that what the evaluator reads itself has rows to search and others to compare on."""
    own = plugins.evaluator.own_data()
    if own is not None:
        needed = config.data.search_sequences + config.data.final_sequences
        own.check(
            needed,
            f"lower data.search_sequences ({config.data.search_sequences}) or "
            f"data.final_sequences ({config.data.final_sequences}), which number its rows too",
        )


def _check_stages(config: RunConfig, space: SpaceFile) -> None:
    if config.study.stages > 1 and (space.pattern or space.options):
        raise ConfigError(
            f"the levels of the space {config.space!r} are patterns, with no step that could be "
            "halved: leave out --stages"
        )


def _requests(config: RunConfig, plugins: Plugins) -> list[Request]:
    """Return what text is needed: none to search on if the rows are the evaluator's own."""
    requests = search_requests(config.data)
    if plugins.evaluator.own_data() is None or GRADIENTS in config.hints:
        return requests
    return [request for request in requests if request.purpose != "search"]


def _check_ladder(job: Job) -> None:
    n_rows, length = job.pool
    available = n_rows * length
    for rung in job.config.ladder.rungs:
        if rung.tokens % length or rung.tokens > available:
            raise ConfigError(
                f"a rung of {rung.tokens} tokens is not a whole number of sequences of {length}, "
                f"or more than the {available} of the search text: change ladder.rungs, "
                f"data.search_length or data.search_sequences"
            )


def fingerprint_of(job: Job) -> dict[str, Any]:
    """Return everything that a measurement depends on, flat."""
    config, model, plugins = job.config, job.session.loaded, job.plugins
    text, own = job.session.text_facts, plugins.evaluator.own_data()
    parameters = parametric_space(job, job.space, lambda: None)
    read = plugins.searcher.data_digest()
    return {
        "model": model.digest,
        "layout": job.space.layout.digest,
        "space": job.space.digest,
        **({AROUND: "start"} if parameters is None and _around_start(job) else {}),
        **({} if parameters is None else {"parameters": parameters.digest}),
        **{f"text.{purpose}": entry["digest"] for purpose, entry in text.items()},
        "pruner": describe(plugins.pruner),
        "propagate": config.supernet.propagate,
        "refresh": config.supernet.refresh,
        "searcher": describe(plugins.searcher),
        **({} if read is None else {"searcher.data": read}),
        "evaluator": describe(plugins.evaluator),
        **({} if own is None else {"evaluator.data": own.digest}),
        "initial": [describe(allocator) for allocator in plugins.initial.values()],
        "hints": [identity(name) for name in config.hints],
        "ladder": repr(config.ladder.build()),
        "seed": config.study.seed,
        "dtype": str(model.model.dtype),
        "device": model.model.device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _around_start(job: Job) -> bool:
    """Return whether a first space of levels lies around the first of the initial profiles."""
    wanted = job.config.supernet.propagate == "start" and bool(job.plugins.initial)
    return wanted and job.space.movable


def study_name(fingerprint: dict[str, Any]) -> str:
    """Return the name of the study of the first stage."""
    return f"search-{digest(fingerprint)}"


def _facts(job: Job, fingerprint: dict[str, Any], command: Sequence[str]) -> dict[str, Any]:
    """Return the contents of ``run.json``, with credentials hidden."""
    config, model = job.config, job.session.loaded.model
    facts = {
        "format": directory.FORMAT,
        "command": shlex.join(command),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": directory.versions(),
        "threads": torch.get_num_threads(),
        "device": str(model.device),
        "dtype": str(model.dtype),
        "config": config.model_dump(mode="json"),
        "study": study_name(fingerprint),
        "fingerprint": fingerprint,
        "model": job.session.model_facts,
        "text": job.session.text_facts,
        "layout": job.space.layout.to_json(),
    }
    if config.measure and job.space.prices:
        facts[directory.PRICES] = job.space.prices.to_json()
    hidden: dict[str, Any] = redact(facts, (config.study.storage or "",))
    return hidden


def _initial(job: Job) -> dict[str, SparsityProfile]:
    """Return the initial allocators' profiles, as the space can have them."""
    found, bounds = {}, allocation_bounds(job.space)
    for name, allocator in job.plugins.initial.items():
        with job.monitor.stage(f"allocate {name}"):
            text = job.session.text["calibration"]
            profile = allocator.allocate(job.session.subject, text, job.space.budget, bounds)
            found[name] = job.space.project(profile)  # itself, but where steps are given
    return found
