"""Pruning a model to a profile, and checking a checkpoint against one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparsity_search.artefacts import write_json
from sparsity_search.budget import Budget
from sparsity_search.config import DataSection, ModelSection, PluginSection
from sparsity_search.errors import ConfigError
from sparsity_search.models.prunable import PrunableModel
from sparsity_search.models.saving import save_checkpoint
from sparsity_search.profile import SparsityProfile
from sparsity_search.realise import prune_sequentially
from sparsity_search.registry import PRUNERS
from sparsity_search.spaces import RoleBounds, bounds_of
from sparsity_search.workflow import rundir
from sparsity_search.workflow.monitor import Monitor
from sparsity_search.workflow.session import calibration, open_session


@dataclass(frozen=True)
class PruneJob:
    """What to prune and how.

    Attributes:
        model: The model.
        data: Its calibration text.
        pruner: The local pruner.
        profile: Path of a profile, or None for a uniform one at ``sparsity``.
        sparsity: Target of a uniform profile.
        bounds: Sparsity limits by role of a uniform profile.
        seed: Of ties and sampled text.
    """

    model: ModelSection
    data: DataSection
    pruner: PluginSection
    profile: Path | None = None
    sparsity: float | None = None
    bounds: RoleBounds | None = None
    seed: int = 0


def prune(job: PruneJob, out: Path, monitor: Monitor | None = None) -> SparsityProfile:
    """Prune a model sequentially and write a checkpoint with its ``profile.json``.

    Raises:
        ConfigError: Not exactly one of profile and sparsity is given, or ``out`` is not empty.
        SparsitySearchError: Something else given is not legal; nothing is written then.
    """
    monitor = monitor or Monitor()
    if (job.profile is None) == (job.sparsity is None):
        raise ConfigError("give either --profile or --sparsity")
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise ConfigError(f"--out {out} exists and is not empty; name another folder")
    budget = Budget(job.sparsity) if job.sparsity is not None else None
    stored = rundir.read_json(job.profile) if job.profile else None
    pruner = PRUNERS.create(job.pruner.name, **job.pruner.parameters)
    session = open_session(job.model, [calibration(job.data)], job.seed, monitor)
    subject = session.subject
    if budget:
        profile = budget.uniform(subject.layout, bounds_of(subject.layout, job.bounds or {}))
    else:
        profile = SparsityProfile.from_json(subject.layout, stored)
    with subject.preserved():
        with monitor.stage("prune", len(subject.blocks)) as advance:
            prune_sequentially(
                subject,
                profile,
                pruner,
                session.text["calibration"],
                seed=job.seed,
                on_block=advance,
            )
        with monitor.stage("save checkpoint"):
            save_checkpoint(session.loaded.model, session.loaded.tokenizer, out)
    facts = {"model": session.describe_model(), "text": session.describe_text()}
    pruner_facts = {"pruner": job.pruner.model_dump(mode="json"), "seed": job.seed}
    write_json(out / rundir.PROFILE, {**profile.to_json(), **facts, **pruner_facts})
    return profile


def verify(checkpoint: ModelSection, profile: Path, monitor: Monitor | None = None) -> None:
    """Check that a checkpoint's zeros are exactly those of a profile.

    Raises:
        ProfileError: They are not, or the profile is corrupt or of another model.
    """
    stored = rundir.read_json(profile)
    session = open_session(checkpoint, [], 0, monitor or Monitor())
    subject: PrunableModel = session.subject
    subject.verify(SparsityProfile.from_json(subject.layout, stored))
