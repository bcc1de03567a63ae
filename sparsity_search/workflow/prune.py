"""Pruning a model to a profile, and checking a checkpoint against one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsity_search.config.schema import RunConfig
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.plugins import pruner_of, unit_kind
from sparsity_search.engine.session import calibration, open_session
from sparsity_search.engine.smaller import comparison
from sparsity_search.errors import ConfigError
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.models.io.saving import save_checkpoint
from sparsity_search.models.surgery.materialise import materialise, plan, saveable
from sparsity_search.profiles.budget import Budget
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.pruning.patterns import Pattern
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.report.card import model_card
from sparsity_search.runs.directory import PROFILE
from sparsity_search.spaces.files import bounds_of
from sparsity_search.utils.files import read_json, write_json

#: What is compared with the dense model, beside a materialised checkpoint.
MATERIALISED = "materialised.json"


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """The outcome of `prune`.

    Attributes:
        profile: What was removed.
        notes: What the pruner had to say of single units, e.g. that damping was raised.
        materialised: What ``materialised.json`` says of a smaller checkpoint; None without.
    """

    profile: SparsityProfile
    notes: Sequence[str] = ()
    materialised: dict[str, Any] | None = None


def prune(
    config: RunConfig,
    out: Path,
    *,
    profile: Path | None = None,
    multiple: int | None = None,
    monitor: Monitor | None = None,
) -> Pruned:
    """Prune a model sequentially and write a checkpoint with its ``profile.json``.

    Args:
        config: Model, calibration text and pruner; its budget if no profile is given.
        out: The folder to write.
        profile: A profile's file; by default the model is pruned uniformly.
        multiple: Materialise: leave removed structures out of the checkpoint, with feed-forward
            widths rounded up to a multiple of this. By default they stay as zeros, but for
            experts, which always go.
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
    stored = read_json(profile) if profile else None
    pruner = pruner_of(config)
    budget = None if profile else Budget(_target(config, pruner))
    kind = _kind(config, pruner, stored)
    if multiple is not None and (kind == "weights" or multiple < 1):
        raise ConfigError("only structures can be materialised, with --multiple-of at least 1")
    if kind == "experts":
        multiple = None  # they are really removed in any case
    requests = [calibration(config.data)]
    session = open_session(config.model, requests, config.study.seed, monitor, units=kind)
    subject = session.subject
    wanted = _uniform(config, budget, subject.layout) if budget else None
    wanted = wanted or SparsityProfile.from_json(subject.layout, stored)
    facts = {
        "model": session.model_facts,
        "removes": subject.units,
        "pruner": config.pruner.model_dump(mode="json"),
        "seed": config.study.seed,
        "text": session.text_facts,
    }
    with subject.preserved():
        with monitor.stage("prune", len(subject.blocks)) as advance:
            notes = prune_sequentially(
                subject,
                wanted,
                pruner,
                session.text["calibration"],
                seed=config.study.seed,
                on_block=advance,
            )
        smaller = None if multiple is None else plan(subject, multiple)
        with monitor.stage("save checkpoint"):
            saved = saveable(subject) if smaller is None else materialise(subject, smaller)
            card = model_card(wanted, facts)
            save_checkpoint(saved, session.loaded.tokenizer, out, card=card)
    write_json(out / PROFILE, {**wanted.to_json(), **facts, "notes": notes})
    if smaller is None and kind != "experts":
        return Pruned(profile=wanted, notes=notes)
    with monitor.stage("compare speed"):
        told = comparison(session, saved, smaller, out)
    write_json(out / MATERIALISED, told)
    return Pruned(profile=wanted, notes=notes, materialised=told)


def verify(config: RunConfig, profile: Path, *, monitor: Monitor | None = None) -> SparsityProfile:
    """Check that a checkpoint's zeros are exactly those of a profile, and return that.

    Raises:
        ProfileError: They are not, or the profile is corrupt or of another model.
    """
    stored = read_json(profile)
    kind = stored.get("removes") if isinstance(stored, dict) else None
    subject = open_session(config.model, [], 0, monitor or Monitor(), units=kind).subject
    wanted = SparsityProfile.from_json(subject.layout, stored)
    subject.verify(wanted)
    return wanted


def _kind(config: RunConfig, pruner: Pruner, stored: Any) -> str:
    """Return what is removed: what the profile says, if the pruner can.

    Raises:
        ConfigError: It cannot.
    """
    of_profile = stored.get("removes") if isinstance(stored, dict) else None
    if config.model.units is not None or of_profile is None:
        return unit_kind(config, pruner)
    if of_profile not in pruner.units:
        raise ConfigError(
            f"the profile removes {of_profile}, the pruner {config.pruner.name!r} "
            f"{' or '.join(pruner.units)}: choose another with --pruner"
        )
    return str(of_profile)


def _target(config: RunConfig, pruner: Pruner) -> float:
    """Return the sparsity asked for, or the one that an N:M pattern means."""
    pattern = Pattern.of(pruner)
    if config.budget.sparsity is None and pattern and pattern.sparsity is not None:
        return pattern.sparsity
    return config.budget.target


def _uniform(config: RunConfig, budget: Budget, layout: Layout) -> SparsityProfile:
    return budget.uniform(layout, bounds_of(layout, config.budget.bounds))
