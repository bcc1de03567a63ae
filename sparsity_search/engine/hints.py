"""Hints for searchers: losses that sensitivities predict for the levels of a stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sparsity_search.allocators.bases.scored import ScoredAllocator
from sparsity_search.config.schema import GRADIENTS
from sparsity_search.engine.job import SearchJob
from sparsity_search.engine.plugins import build_factory
from sparsity_search.engine.session import Session
from sparsity_search.errors import ProfileError
from sparsity_search.profiles.scores import Scores
from sparsity_search.registry import ALLOCATORS, SENSITIVITIES
from sparsity_search.runs.scores import load_scores
from sparsity_search.spaces.hints import Hint
from sparsity_search.spaces.levels import SearchSpace
from sparsity_search.utils.files import compute_digest


def check_hints(names: Sequence[str], session: Session) -> None:
    """Check, before any work, that hints can be measured or read.

    Raises:
        UnknownNameError: There is no such sensitivity.
        ConfigError: A sensitivity cannot measure units of this kind, or a file cannot be read or
            was measured on another model.
        ProfileError: A file holds no scores, or those of other units.
    """
    for name in names:
        if name.endswith(".json"):
            scores = load_scores(Path(name))
            if scores.layout.digest != session.subject.layout.digest:
                raise ProfileError(f"the scores in {name} are of another model, or of other units")
            session.check_same_model(scores.facts.get("model"), name)
        elif name != GRADIENTS:
            SENSITIVITIES.create(name).check_units(session.subject.units)


def identify_hint(name: str) -> str:
    """Return the hint's fingerprint key: its name, and for a file a digest of its contents.

    Raises:
        ConfigError: The file cannot be read.
        ProfileError: The file holds no scores.
    """
    if not name.endswith(".json"):
        return name
    return f"{name}: {compute_digest(load_scores(Path(name)).to_json())}"


def read_hints(job: SearchJob, stage: int, space: SearchSpace) -> dict[str, Hint]:
    """Return the hints of a stage that an earlier session recorded, by name.

    Args:
        job: The search.
        stage: Number of the stage, from 1.
        space: Space of the stage; hints of another space are ignored.
    """
    stored = {name: job.directory.read_hint(stage, name, space) for name in job.config.hints}
    return {name: hint for name, hint in stored.items() if hint is not None}


def measure_hint(job: SearchJob, name: str, space: SearchSpace) -> Hint:
    """Return the hint from a sensitivity on the dense model, or from a file of scores.

    Raises:
        NumericalError: A loss is not finite.
    """
    scores = load_scores(Path(name)) if name.endswith(".json") else _measure_scores(job, name)
    return predict_hint(name, scores, space)


def predict_hint(name: str, scores: Scores, space: SearchSpace) -> Hint:
    """Return the losses that scores of a layout predict for the levels of a space over it."""
    losses = []
    for gene, units in enumerate(space.genes):
        span = space.limits.of(gene)
        counts = np.array([space.gene_counts(gene, level) for level in span])
        each = zip(units, counts.T, strict=True)
        losses.append(np.sum([scores.curves[unit](column) for unit, column in each], axis=0))
    return Hint(name, space.limits.lower, tuple(losses))


def _measure_scores(job: SearchJob, name: str) -> Scores:
    build = build_factory(job.config)
    measurer: ScoredAllocator = build.create(ALLOCATORS, "knapsack", {"sensitivity": name})
    with job.monitor.step(f"measure {name}"):
        return measurer.measure(job.session.subject, job.session.text["calibration"])
