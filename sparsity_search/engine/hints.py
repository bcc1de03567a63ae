"""Advice for searchers, measured once a stage and kept in the run directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sparsity_search.allocators.bases.scored import ScoredAllocator
from sparsity_search.engine.job import Job
from sparsity_search.engine.plugins import factory_of
from sparsity_search.errors import ProfileError
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.scores import Scores
from sparsity_search.registry import ALLOCATORS, SENSITIVITIES
from sparsity_search.runs.directory import read_json
from sparsity_search.runs.scores import load_scores
from sparsity_search.spaces.hints import Hint
from sparsity_search.spaces.levels import SearchSpace
from sparsity_search.utils.files import digest, write_json

#: The hint that is taken of the pruned model; all others are of the dense one.
GRADIENTS = "gradients"


def check_hints(names: Sequence[str], layout: Layout, kind: str) -> None:
    """Check, before any work, that hints can be measured, or read.

    Raises:
        UnknownNameError: There is no such sensitivity.
        ConfigError: It cannot measure units of this kind, or a file cannot be read.
        ProfileError: A file holds no scores, or those of another model.
    """
    for name in names:
        if name.endswith(".json"):
            if load_scores(Path(name)).layout.digest != layout.digest:
                raise ProfileError(f"the scores in {name} are of another model, or of other units")
        elif name != GRADIENTS:
            SENSITIVITIES.create(name).check(kind)


def identity(name: str) -> str:
    """Return what tells a hint from others in a fingerprint: its name, and of a file the contents.

    Raises:
        ConfigError: The file cannot be read.
        ProfileError: It holds no scores.
    """
    if not name.endswith(".json"):
        return name
    return f"{name}: {digest(load_scores(Path(name)).to_json())}"


def stored_hints(
    folder: Path, names: Sequence[str], space: SearchSpace
) -> tuple[Hint, ...] | None:
    """Return the hints that an earlier session left in a folder; None if one is missing.

    One of another space counts as missing: more rounds have changed where a stage starts.
    """
    found = [_read(hint_file(folder, name), space) for name in names]
    return None if None in found else tuple(filter(None, found))


def write_hint(folder: Path, space: SearchSpace, hint: Hint) -> None:
    """Leave a hint in a folder."""
    losses = [loss.tolist() for loss in hint.losses]
    facts = {"name": hint.name, "space": space.digest, "losses": losses}
    write_json(hint_file(folder, hint.name), facts)


def measure_hints(job: Job, space: SearchSpace, folder: Path) -> None:
    """Leave the hints in a folder that files and the dense model give.

    Raises:
        NumericalError: A loss is not finite.
    """
    for name in job.config.hints:
        if name != GRADIENTS and _read(hint_file(folder, name), space) is None:
            scores = load_scores(Path(name)) if name.endswith(".json") else _measured(job, name)
            write_hint(folder, space, hint_of(name, scores, space))


def hint_of(name: str, scores: Scores, space: SearchSpace) -> Hint:
    """Return what scores of its layout predict for the levels of a space."""
    losses = []
    for gene, units in enumerate(space.genes):
        span = space.limits.of(gene)
        counts = np.array([space.gene_counts(gene, level) for level in span])
        each = zip(units, counts.T, strict=True)
        losses.append(np.sum([scores.curves[unit](column) for unit, column in each], axis=0))
    return Hint(name, space.limits.lower, tuple(losses))


def hint_file(folder: Path, name: str) -> Path:
    """Return where a hint is kept."""
    return folder / f"{Path(name).stem}.json"


def _measured(job: Job, name: str) -> Scores:
    build = factory_of(job.config)
    measurer: ScoredAllocator = build.create(ALLOCATORS, "knapsack", {"sensitivity": name})
    with job.monitor.stage(f"measure {name}"):
        return measurer.measure(job.session.subject, job.session.text["calibration"])


def _read(file: Path, space: SearchSpace) -> Hint | None:
    found = read_json(file) if file.exists() else {}
    if found.get("space") != space.digest:
        return None
    return Hint(found["name"], space.limits.lower, tuple(map(np.array, found["losses"])))
