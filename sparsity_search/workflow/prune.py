"""Pruning a model to a profile, and checking a checkpoint against one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsity_search.artefacts import write_json
from sparsity_search.budget import Budget
from sparsity_search.config import RunConfig
from sparsity_search.errors import ConfigError
from sparsity_search.layout import Layout
from sparsity_search.models.saving import save_checkpoint
from sparsity_search.profile import SparsityProfile
from sparsity_search.pruners.base import Pruner
from sparsity_search.realise import prune_sequentially
from sparsity_search.registry import PRUNERS
from sparsity_search.spaces import bounds_of
from sparsity_search.workflow import rundir
from sparsity_search.workflow.monitor import Monitor
from sparsity_search.workflow.plugins import unit_kind
from sparsity_search.workflow.session import calibration, open_session


def prune(
    config: RunConfig, out: Path, *, profile: Path | None = None, monitor: Monitor | None = None
) -> SparsityProfile:
    """Prune a model sequentially and write a checkpoint with its ``profile.json``.

    Args:
        config: Model, calibration text and pruner; its budget if no profile is given.
        out: The folder to write.
        profile: A profile's file; by default the model is pruned uniformly.
        monitor: Watches the job.

    Raises:
        ConfigError: Both or neither of profile and sparsity are given, or ``out`` is not empty.
        SparsitySearchError: Something else given is not legal; nothing is written then.
    """
    monitor = monitor or Monitor()
    if profile is not None and config.budget.sparsity is not None:
        raise ConfigError("give either --profile or --sparsity, not both")
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise ConfigError(f"--out {out} exists and is not empty; name another folder")
    stored = rundir.read_json(profile) if profile else None
    budget = None if profile else Budget(config.budget.target)
    pruner = PRUNERS.create(config.pruner.name, **config.pruner.parameters)
    kind = _kind(config, pruner, stored)
    requests = [calibration(config.data)]
    session = open_session(config.model, requests, config.study.seed, monitor, kind)
    subject = session.subject
    wanted = _uniform(config, budget, subject.layout) if budget else None
    wanted = wanted or SparsityProfile.from_json(subject.layout, stored)
    with subject.preserved():
        with monitor.stage("prune", len(subject.blocks)) as advance:
            prune_sequentially(
                subject,
                wanted,
                pruner,
                session.text["calibration"],
                seed=config.study.seed,
                on_block=advance,
            )
        with monitor.stage("save checkpoint"):
            save_checkpoint(session.loaded.model, session.loaded.tokenizer, out)
    facts = {
        "model": session.model_facts,
        "units": subject.units,
        "pruner": config.pruner.model_dump(mode="json"),
        "seed": config.study.seed,
        "text": session.text_facts,
    }
    write_json(out / rundir.PROFILE, {**wanted.to_json(), **facts})
    return wanted


def verify(config: RunConfig, profile: Path, *, monitor: Monitor | None = None) -> SparsityProfile:
    """Check that a checkpoint's zeros are exactly those of a profile, and return that.

    Raises:
        ProfileError: They are not, or the profile is corrupt or of another model.
    """
    stored = rundir.read_json(profile)
    kind = stored.get("units") if isinstance(stored, dict) else None
    subject = open_session(config.model, [], 0, monitor or Monitor(), kind).subject
    wanted = SparsityProfile.from_json(subject.layout, stored)
    subject.verify(wanted)
    return wanted


def _kind(config: RunConfig, pruner: Pruner, stored: Any) -> str:
    """Return what is removed: what the profile says, if the pruner can.

    Raises:
        ConfigError: It cannot.
    """
    of_profile = stored.get("units") if isinstance(stored, dict) else None
    if of_profile and config.model.units is None and of_profile not in pruner.units:
        raise ConfigError(
            f"the profile removes {of_profile}, the pruner {config.pruner.name!r} "
            f"{' or '.join(pruner.units)}: choose another with --pruner"
        )
    return config.model.units or of_profile or unit_kind(config, pruner)


def _uniform(config: RunConfig, budget: Budget, layout: Layout) -> SparsityProfile:
    return budget.uniform(layout, bounds_of(layout, config.budget.bounds))
