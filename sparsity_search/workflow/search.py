"""The main job: search a profile, compare it with others as shipped, and write a checkpoint."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from sparsity_search.artefacts import digest, write_json
from sparsity_search.budget import Budget
from sparsity_search.config import RunConfig
from sparsity_search.errors import ConfigError
from sparsity_search.history import History
from sparsity_search.objective import SupernetObjective
from sparsity_search.profile import SparsityProfile
from sparsity_search.report import redact, write_report
from sparsity_search.space import SearchSpace
from sparsity_search.spaces import load_space
from sparsity_search.store import Store, journal
from sparsity_search.study import Limits, Study
from sparsity_search.supernet.build import SupernetPlan, build
from sparsity_search.supernet.disk import SupernetFolder
from sparsity_search.supernet.supernet import Supernet
from sparsity_search.workflow import rundir
from sparsity_search.workflow.final import compare
from sparsity_search.workflow.monitor import Monitor
from sparsity_search.workflow.plugins import Plugins
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
    budget, plugins = Budget(config.budget.target), Plugins.of(config)
    space_file = load_space(config.space)
    rundir.check_resumable(out, config)
    session = open_session(config.model, search_requests(config.data), config.study.seed, monitor)
    space = space_file.build(session.subject.layout, budget, config.budget.bounds)
    _check_ladder(config, session)
    facts = _facts(config, session, space, plugins, command)
    with rundir.locked(out):
        facts = rundir.first_of(out / rundir.RUN, facts)
        write_json(out / rundir.RUN, facts)
        initial = _initial(plugins, session, space, monitor)
        history = _run(config, out, facts, session, space, plugins, initial, monitor)
        if monitor.stopped():
            return None
        best = history.survivors[0] if history.survivors else space.uniform
        profiles = {"uniform": space.base, **initial, "searched": space.profile(best)}
        shipped = compare(config, plugins, session, profiles, history, out, monitor)
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


def _facts(
    config: RunConfig,
    session: Session,
    space: SearchSpace,
    plugins: Plugins,
    command: Sequence[str],
) -> dict[str, Any]:
    """Return the contents of ``run.json``."""
    text = session.describe_text()
    fingerprint = {
        "model": session.loaded.digest,
        "layout": session.subject.layout.digest,
        "space": space.digest,
        **{f"text.{purpose}": entry["digest"] for purpose, entry in text.items()},
        "pruner": repr(plugins.pruner),
        "propagate": config.supernet.propagate,
        "searcher": repr(plugins.searcher),
        "evaluator": repr(plugins.evaluator),
        "initial": [repr(allocator) for allocator in plugins.initial.values()],
        "ladder": repr(config.ladder.build()),
        "seed": config.study.seed,
        "dtype": str(session.loaded.model.dtype),
        "device": session.loaded.model.device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    secrets = (config.study.storage,) if config.study.storage else ()
    facts = {
        "format": rundir.FORMAT,
        "command": shlex.join(command),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": rundir.versions(),
        "threads": torch.get_num_threads(),
        "device": str(session.loaded.model.device),
        "dtype": str(session.loaded.model.dtype),
        "config": config.model_dump(mode="json"),
        "study": f"search-{digest(fingerprint)}",
        "fingerprint": fingerprint,
        "model": session.describe_model(),
        "text": text,
        "layout": session.subject.layout.to_json(),
    }
    hidden: dict[str, Any] = redact(facts, secrets)
    return hidden


def _initial(
    plugins: Plugins, session: Session, space: SearchSpace, monitor: Monitor
) -> dict[str, SparsityProfile]:
    found = {}
    for name, allocator in plugins.initial.items():
        with monitor.stage(f"allocate {name}"):
            found[name] = allocator.allocate(
                session.subject, session.text["calibration"], space.budget, space.bounds
            )
    return found


def _run(
    config: RunConfig,
    out: Path,
    facts: dict[str, Any],
    session: Session,
    space: SearchSpace,
    plugins: Plugins,
    initial: dict[str, SparsityProfile],
    monitor: Monitor,
) -> History:
    """Build the supernet and run the study on it; the model is dense again afterwards."""
    storage = config.study.storage or journal(out / rundir.JOURNAL)
    store = Store(storage, facts["study"], facts["fingerprint"])
    supernet = _supernet(config, out, facts, session, space, plugins, monitor)
    tokens = session.text["search"]
    with monitor.stage("bind evaluator"):
        proxy = plugins.evaluator.bind(session.loaded.model, tokens)
    ladder, study = config.ladder.build(), config.study
    minutes = study.minutes or (None if study.rounds is not None else DEFAULT_MINUTES)
    with supernet.resident() as switch, monitor.stage("search"):
        objective = SupernetObjective(
            session.loaded.model, switch, proxy, (tokens.shape[0], tokens.shape[1]), study.seed
        )
        return Study(
            space=space,
            searcher=plugins.searcher,
            objective=objective,
            ladder=ladder,
            store=store,
            initial=[space.nearest(profile) for profile in initial.values()],
            seed=study.seed,
            on_measured=lambda m: monitor.measured(m, ladder.top),
        ).run(Limits(study.rounds, minutes and 60 * minutes, monitor.stopped))


def _supernet(
    config: RunConfig,
    out: Path,
    facts: dict[str, Any],
    session: Session,
    space: SearchSpace,
    plugins: Plugins,
    monitor: Monitor,
) -> Supernet:
    plan = SupernetPlan(
        pruner=plugins.pruner,
        tables=space.tables(),
        centre=space.base,
        propagate=config.supernet.propagate,
        seed=config.study.seed,
    )
    folder = None
    if config.supernet.store == "disk":
        keys = ("model", "space", "text.calibration", "pruner", "propagate", "seed", "dtype")
        fingerprint = {key: facts["fingerprint"][key] for key in keys}
        folder = SupernetFolder(out / "supernet", fingerprint)
    with monitor.stage("build supernet", len(session.subject.blocks)) as advance:
        return build(session.subject, session.text["calibration"], plan, folder, advance)
