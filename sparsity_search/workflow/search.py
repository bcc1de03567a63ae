"""The main job: search a profile, compare it with others as shipped, and write a checkpoint."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from sparsity_search.artefacts import digest
from sparsity_search.budget import Bounds
from sparsity_search.config import RunConfig
from sparsity_search.errors import ConfigError
from sparsity_search.history import History
from sparsity_search.objective import SupernetObjective
from sparsity_search.profile import SparsityProfile
from sparsity_search.report import redact, write_report
from sparsity_search.spaces import load_space
from sparsity_search.store import Store, database, journal
from sparsity_search.study import Limits, Study
from sparsity_search.supernet.build import SupernetPlan, build
from sparsity_search.supernet.disk import SupernetFolder
from sparsity_search.supernet.supernet import Supernet
from sparsity_search.workflow import rundir
from sparsity_search.workflow.final import compare
from sparsity_search.workflow.job import Job
from sparsity_search.workflow.monitor import Monitor
from sparsity_search.workflow.plugins import Plugins, budget_of, unit_kind
from sparsity_search.workflow.session import Session, open_session, search_requests

#: Search time if neither rounds nor minutes are given.
DEFAULT_MINUTES = 10.0


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
    monitor = monitor or Monitor()
    space_file, plugins = load_space(config.space), Plugins.of(config)
    budget = budget_of(config, space_file, plugins.pruner)
    rundir.check_resumable(out, config)
    kind = unit_kind(config, plugins.pruner)
    requests = search_requests(config.data)
    session = open_session(config.model, requests, config.study.seed, monitor, kind)
    space = space_file.build(session.subject.layout, budget, config.budget.bounds)
    _check_ladder(config, session)
    job = Job(config, plugins, session, space, out, monitor)
    fingerprint = _fingerprint(job)
    storage = database(config.study.storage) if config.study.storage else None
    with rundir.locked(out):
        rundir.begin(out, _facts(job, fingerprint, command))
        initial = _initial(job)
        storage = storage or journal(out / rundir.JOURNAL)
        history = _run(job, initial, Store(storage, _study_name(fingerprint), fingerprint))
        if monitor.stopped():
            return None
        best = history.survivors[0] if history.survivors else space.uniform
        profiles = {"uniform": space.base, **initial, "searched": space.profile(best)}
        shipped = compare(job, profiles, history)
        write_report(out, config.study.storage)
    return shipped


def _check_ladder(config: RunConfig, session: Session) -> None:
    length = session.text["search"].shape[1]
    available = length * len(session.text["search"])
    for rung in config.ladder.rungs:
        if rung.tokens % length or rung.tokens > available:
            raise ConfigError(
                f"a rung of {rung.tokens} tokens is not a whole number of sequences of {length}, "
                f"or more than the {available} of the search text: change ladder.rungs, "
                f"data.search_length or data.search_sequences"
            )


def _fingerprint(job: Job) -> dict[str, Any]:
    """Return everything that a measurement depends on, flat."""
    config, model, plugins = job.config, job.session.loaded, job.plugins
    text = job.session.text_facts
    return {
        "model": model.digest,
        "layout": job.space.layout.digest,
        "space": job.space.digest,
        **{f"text.{purpose}": entry["digest"] for purpose, entry in text.items()},
        "pruner": repr(plugins.pruner),
        "propagate": config.supernet.propagate,
        "searcher": repr(plugins.searcher),
        "evaluator": repr(plugins.evaluator),
        "initial": [repr(allocator) for allocator in plugins.initial.values()],
        "ladder": repr(config.ladder.build()),
        "seed": config.study.seed,
        "dtype": str(model.model.dtype),
        "device": model.model.device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _study_name(fingerprint: dict[str, Any]) -> str:
    return f"search-{digest(fingerprint)}"


def _facts(job: Job, fingerprint: dict[str, Any], command: Sequence[str]) -> dict[str, Any]:
    """Return the contents of ``run.json``, with credentials hidden."""
    config, model = job.config, job.session.loaded.model
    facts = {
        "format": rundir.FORMAT,
        "command": shlex.join(command),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": rundir.versions(),
        "threads": torch.get_num_threads(),
        "device": str(model.device),
        "dtype": str(model.dtype),
        "config": config.model_dump(mode="json"),
        "study": _study_name(fingerprint),
        "fingerprint": fingerprint,
        "model": job.session.model_facts,
        "text": job.session.text_facts,
        "layout": job.space.layout.to_json(),
    }
    hidden: dict[str, Any] = redact(facts, (config.study.storage or "",))
    return hidden


def _initial(job: Job) -> dict[str, SparsityProfile]:
    """Return the initial allocators' profiles, as the space can have them.

    Among options an allocator's numbers are taken as savings: limits of zeros do not bound them.
    """
    found, layout, bounds = {}, job.space.layout, job.space.bounds
    if job.space.options is not None:
        bounds = Bounds(lower=0 * layout.counts, upper=layout.counts)
    for name, allocator in job.plugins.initial.items():
        with job.monitor.stage(f"allocate {name}"):
            text = job.session.text["calibration"]
            profile = allocator.allocate(job.session.subject, text, job.space.budget, bounds)
            found[name] = job.space.project(profile)  # itself, but where steps are given
    return found


def _run(job: Job, initial: dict[str, SparsityProfile], store: Store) -> History:
    """Build the supernet and run the study on it; the model is dense again afterwards."""
    supernet = _supernet(job)
    model, tokens = job.session.loaded.model, job.session.text["search"]
    with job.monitor.stage("bind evaluator"):
        proxy = job.plugins.evaluator.bind(model, tokens)
    ladder, study = job.config.ladder.build(), job.config.study
    minutes = study.minutes or (None if study.rounds is not None else DEFAULT_MINUTES)
    with supernet.resident() as switch, job.monitor.stage("search"):
        pool = (tokens.shape[0], tokens.shape[1])
        return Study(
            space=job.space,
            searcher=job.plugins.searcher,
            objective=SupernetObjective(model, switch, proxy, pool, study.seed),
            ladder=ladder,
            store=store,
            initial=[job.space.nearest(profile) for profile in initial.values()],
            seed=study.seed,
            on_measured=lambda m: job.monitor.measured(m, ladder.top),
        ).run(Limits(study.rounds, minutes and 60 * minutes, job.monitor.stopped))


def _supernet(job: Job) -> Supernet:
    plan = SupernetPlan(
        pruner=job.plugins.pruner,
        tables=job.space.tables(),
        patterns=job.space.patterns(),
        centre=job.space.base,
        propagate=job.config.supernet.propagate,
        seed=job.config.study.seed,
    )
    folder = None
    if job.config.supernet.store == "disk":
        keys = ("model", "space", "text.calibration", "pruner", "propagate", "seed", "dtype")
        fingerprint = _fingerprint(job)
        folder = SupernetFolder(job.out / "supernet", {key: fingerprint[key] for key in keys})
    subject = job.session.subject
    with job.monitor.stage("build supernet", len(subject.blocks)) as advance:
        return build(subject, job.session.text["calibration"], plan, folder, advance)
