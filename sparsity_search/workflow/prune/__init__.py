"""Pruning a model to a profile, and writing a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsity_search.config.schema import RunConfig
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.plugins import build_pruner, choose_units
from sparsity_search.engine.session import Session, open_session, request_calibration
from sparsity_search.errors import ConfigError
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.models.io.saving import write_checkpoint
from sparsity_search.models.surgery.fewer_experts import check_experts
from sparsity_search.models.surgery.materialise import materialise, plan, prepare_for_saving
from sparsity_search.profiles.budget import Budget
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import PROFILE_JSON, SparsityProfile
from sparsity_search.pruning.patterns import check_zeros, pattern_of
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.report.card import format_card
from sparsity_search.runs.directory import MATERIALISED, PROFILE
from sparsity_search.spaces.files import bounds_of
from sparsity_search.utils.files import atomic_folder, check_empty
from sparsity_search.workflow.prune.smaller import compare_with_dense, warn_of_padding


@dataclass(frozen=True, kw_only=True)
class PruneResult:
    """The outcome of `prune`.

    Attributes:
        profile: The profile of the checkpoint.
        types: Number types and device.
        notes: Lines of the pruner about single units, e.g. that damping was raised.
        materialised: Contents of ``materialised.json`` of a smaller checkpoint; None without.
    """

    profile: SparsityProfile
    types: str
    notes: Sequence[str] = ()
    materialised: dict[str, Any] | None = None


def prune(
    config: RunConfig,
    out: Path,
    *,
    profile: Path | None = None,
    multiple: int | None = None,
    monitor: Monitor | None = None,
) -> PruneResult:
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
        ConfigError: Both or neither of profile and sparsity are given, ``out`` is not empty, or
            another process is pruning into it.
        SparsitySearchError: Something else given is not legal; nothing is written then.
    """
    monitor = monitor or Monitor()
    if profile is not None and config.budget.sparsity is not None:
        raise ConfigError("give either --profile or --sparsity, not both")
    check_empty(out)
    stored, pruner = PROFILE_JSON.read(profile) if profile else None, build_pruner(config)
    budget = None if stored else Budget(_find_target(config, pruner))
    kind = _choose_kind(config, pruner, stored)
    if multiple is not None and (kind == "weights" or multiple < 1):
        raise ConfigError("only structures can be materialised, with --multiple-of at least 1")
    requests = [request_calibration(config.data)]
    session = open_session(config.model, requests, config.study.seed, monitor, units=kind)
    loaded, layout = session.loaded, session.subject.layout
    if budget is not None:
        target = _build_uniform(config, budget, layout)
        check_zeros(session.subject, pruner)
    else:
        target = SparsityProfile.from_json(layout, stored)
    subject, facts = session.subject, _describe(session, config)
    check_experts(subject, target)
    removes_modules = kind == "experts"  # with or without --materialise
    if removes_modules or multiple is not None:
        loaded.check_shape_is_kept("--units experts" if removes_modules else "--materialise")
    if multiple and not removes_modules:
        warn_of_padding(subject, target, multiple)
    with atomic_folder(out) as folder:
        with subject.preserved():
            notes = _run_pruner(session, pruner, target, config, monitor)
            shape = plan(subject, multiple) if multiple and not removes_modules else None
            with monitor.step("save checkpoint"):
                saved = (
                    prepare_for_saving(subject) if shape is None else materialise(subject, shape)
                )
                card = format_card(target, facts)
                write_checkpoint(saved, loaded.tokenizer, folder, base=loaded, card=card)
        PROFILE_JSON.write(folder / PROFILE, {**target.to_json(), **facts, "notes": notes})
        figures = None
        if shape is not None or removes_modules:
            with monitor.step("compare speed"):
                figures = compare_with_dense(session, saved, shape, folder)
            PROFILE_JSON.write(folder / MATERIALISED, figures)
    return PruneResult(profile=target, types=session.types, notes=notes, materialised=figures)


def find_units(config: RunConfig, profile: Path | None = None) -> str:
    """Return the kind of units that `prune` would remove.

    Raises:
        SparsitySearchError: As `prune`.
    """
    stored = PROFILE_JSON.read(profile) if profile else None
    return _choose_kind(config, build_pruner(config), stored)


def _run_pruner(
    session: Session,
    pruner: Pruner,
    profile: SparsityProfile,
    config: RunConfig,
    monitor: Monitor,
) -> list[str]:
    """Prune the model to a profile, and return the pruner's notes."""
    subject, text = session.subject, session.text["calibration"]
    with monitor.step("prune", len(subject.blocks)) as advance:
        return prune_sequentially(
            subject,
            profile,
            pruner,
            text,
            seed=config.study.seed,
            refresh=config.data.refresh,
            on_block=advance,
        )


def _describe(session: Session, config: RunConfig) -> dict[str, Any]:
    """Return where a pruned checkpoint comes from."""
    return {
        "model": session.model_facts,
        "removes": session.subject.units,
        "pruner": config.pruner.model_dump(mode="json"),
        "seed": config.study.seed,
        "refresh": config.data.refresh,
        "text": session.text_facts,
    }


def _choose_kind(config: RunConfig, pruner: Pruner, stored: Mapping[str, Any] | None) -> str:
    """Return the kind of units to remove: that of the profile, if the pruner can remove it.

    Raises:
        ConfigError: It cannot.
    """
    of_profile = None if stored is None else stored.get("removes")
    if config.model.units is not None or of_profile is None:
        return choose_units(config, pruner)
    if of_profile not in pruner.units:
        raise ConfigError(
            f"the profile removes {of_profile}, the pruner {config.pruner.name!r} "
            f"{' or '.join(pruner.units)}: choose another with --pruner"
        )
    return str(of_profile)


def _find_target(config: RunConfig, pruner: Pruner) -> float:
    """Return the sparsity asked for, or the one that an N:M pattern means."""
    pattern = pattern_of(pruner)
    if config.budget.sparsity is None and pattern and pattern.sparsity is not None:
        return pattern.sparsity
    return config.budget.target


def _build_uniform(config: RunConfig, budget: Budget, layout: Layout) -> SparsityProfile:
    return budget.uniform(layout, bounds_of(layout, config.budget.bounds))
