"""A profile that moves: to another format, to another target, or to another model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sparsity_search.config.schema import BudgetSection, ModelSection
from sparsity_search.engine.monitor import Monitor
from sparsity_search.errors import ConfigError, ProfileError, suggest_name, told_of
from sparsity_search.interfaces.format import Format, ProfileDocument
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.profiles.transfer import (
    find_unmatched_roles,
    have_same_units,
    retarget,
    transfer,
)
from sparsity_search.registry import FORMATS
from sparsity_search.spaces.files import bounds_of
from sparsity_search.utils.files import write_text
from sparsity_search.utils.reading import read_text

#: The profile's own format, which holds all that is known.
_NATIVE = "profile"


@dataclass(frozen=True, kw_only=True)
class ConversionRequest:
    """A conversion to make.

    Attributes:
        source: The file to read.
        out: The file to write.
        source_format: Format of ``source``; by default the one of its name's suffix.
        out_format: Format of ``out``; by default the one of its name's suffix.
        settings: Settings of formats, by format.
        reference: A ``profile.json`` whose units a source without sizes is about.
        model: The model to convert to; a source without sizes is about it, unless there is a
            reference.
        budget: Another target, and bounds by role; by default the source's own target.
    """

    source: Path
    out: Path
    source_format: str | None = None
    out_format: str | None = None
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    reference: Path | None = None
    model: ModelSection | None = None
    budget: BudgetSection = field(default_factory=BudgetSection)


@dataclass(frozen=True, kw_only=True)
class ConversionResult:
    """The outcome of a conversion.

    Attributes:
        profile: The profile that the file holds.
        rounded: Units whose count the format cannot say, so that another one is in the file.
        format: The format that was written.
        how: ``copied``, ``shifted`` to another target, or ``transferred`` to another model.
        unmatched: Roles of the other model that the source does not have.
    """

    profile: SparsityProfile
    rounded: int
    format: str
    how: Literal["copied", "shifted", "transferred"]
    unmatched: tuple[str, ...] = ()


def convert(job: ConversionRequest, *, monitor: Monitor | None = None) -> ConversionResult:
    """Convert a profile and write it to ``job.out``.

    Raises:
        SparsitySearchError: Something given is not legal; nothing is written then.
    """
    reader_name = job.source_format or _guess_format(job.source, "--from")
    writer_name = job.out_format or _guess_format(job.out, "--to")
    for name in job.settings:
        if name not in (reader_name, writer_name):
            hint = suggest_name(name, {reader_name, writer_name})
            raise ConfigError(f"--set {name}: no file here is of this format: {hint}")
    reader, writer = (_create(name, job.settings) for name in (reader_name, writer_name))
    text = read_text(job.source)
    source = _read(reader, job.source, text) if reader.sized else None
    if source and job.reference:
        raise ConfigError(f"--reference is not needed: {reader_name} files hold sizes")
    sizes = source or (_read_reference(job.reference) if job.reference else None)
    layout = sizes.profile.layout if sizes else None
    facts: dict[str, Any] = {}
    if job.model is not None:
        kind = _choose_kind(job.model, sizes)
        layout, facts = _open_model(job.model, kind, monitor or Monitor())
    if source is None:
        read = _read(reader, job.source, text, sizes.profile.layout if sizes else layout)
        source = ProfileDocument(read.profile, _keep_lasting(sizes.facts) if sizes else {})
    document, how = _move(source, layout or source.profile.layout, facts, job.budget)
    if document.profile.patterns and not writer.patterned:
        raise ProfileError(
            f"{writer_name} has no place for the patterns of this profile: use --to profile"
        )
    written = writer.write(document)
    wanted = document.profile
    found = writer.read(written, wanted.layout).profile  # checks the text before it is a file
    write_text(job.out, written)
    return ConversionResult(
        profile=found,
        rounded=int((np.array(found.removed) != np.array(wanted.removed)).sum()),
        format=writer_name,
        how=how,
        unmatched=tuple(find_unmatched_roles(source.profile, wanted.layout)),
    )


def _move(
    source: ProfileDocument, layout: Layout, facts: Mapping[str, Any], wanted: BudgetSection
) -> tuple[ProfileDocument, Literal["copied", "shifted", "transferred"]]:
    """Return the profile on ``layout`` at its own or another target, and how it got there."""
    profile, bounds = source.profile, bounds_of(layout, wanted.bounds)
    same = have_same_units(profile.layout, layout)
    if same:
        profile = SparsityProfile(layout, profile.removed, profile.patterns)
        if wanted.sparsity is None and _lies_within(profile, bounds):
            return ProfileDocument(profile, {**source.facts, **facts}), "copied"
    budget = Budget(profile.sparsity if wanted.sparsity is None else wanted.sparsity)
    origin = {"profile": profile.digest, "sparsity": profile.sparsity, "facts": source.facts}
    told = {"target": budget.target, "converted": origin, **facts}
    if same:
        shifted = retarget(profile, budget, bounds)
        return ProfileDocument(shifted, {**_keep_lasting(source.facts), **told}), "shifted"
    return ProfileDocument(transfer(profile, layout, budget, bounds), told), "transferred"


def _lies_within(profile: SparsityProfile, bounds: Bounds) -> bool:
    removed = np.array(profile.removed)
    return bool(((bounds.lower <= removed) & (removed <= bounds.upper)).all())


def _keep_lasting(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that hold for any other profile of the same units too."""
    return {key: facts[key] for key in ("model", "removes") if key in facts}


def _guess_format(path: Path, option: str) -> str:
    """Return the format that a file's name stands for.

    Raises:
        ConfigError: None or several; the message names the option that says which.
    """
    suffix = path.suffix.lower()
    found = [name for name, kind in FORMATS.classes().items() if suffix in kind.suffixes]
    if len(found) != 1:
        raise ConfigError(
            f"{path.name} does not tell its format: give {option}, one of "
            f"{', '.join(FORMATS.names())}"
        )
    return found[0]


def _create(name: str, settings: Mapping[str, Mapping[str, Any]]) -> Format:
    found: Format = FORMATS.create(name, **settings.get(name, {}))
    return found


def _read_reference(path: Path) -> ProfileDocument:
    return _read(FORMATS.create(_NATIVE), path, read_text(path))


def _read(reader: Format, path: Path, text: str, layout: Layout | None = None) -> ProfileDocument:
    with told_of(path):
        return reader.read(text, layout)


def _choose_kind(model: ModelSection, known: ProfileDocument | None) -> str:
    """Return the kind of units of the other model: that of the source.

    Raises:
        ConfigError: Another kind is asked for, or the source removes structures and does not say
            which.
    """
    if known is None:
        return model.units or "weights"
    single = all(unit.cost == 1 for unit in known.profile.layout)
    kind = known.facts.get("removes", "weights" if single else None)
    if kind is None and model.units is None:
        raise ConfigError("the profile removes structures, but does not say which: give --units")
    if kind is not None and model.units not in (None, kind):
        raise ConfigError(f"the profile removes {kind}: --units {model.units} does not fit")
    return str(kind or model.units)


def _open_model(model: ModelSection, kind: str, monitor: Monitor) -> tuple[Layout, dict[str, Any]]:
    """Return the model's units, and facts about it for the record."""
    from sparsity_search.engine.session import open_session  # heavy, and seldom needed

    session = open_session(model, [], 0, monitor, units=kind)
    return session.subject.layout, {"model": session.model_facts, "removes": kind}
