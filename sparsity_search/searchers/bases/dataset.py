"""Candidates of one search with their scores, kept for others: other budgets, other spaces."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sparsity_search.errors import ConfigError, ProfileError
from sparsity_search.interfaces.searcher import Space
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.searchers.bases.features import Features
from sparsity_search.searchers.bases.models import Pairs
from sparsity_search.searchers.bases.training import log_scores
from sparsity_search.spaces.levels import SearchSpace
from sparsity_search.trials.history import Fidelity
from sparsity_search.utils.files import digest

FORMAT = 1
#: What the file is, for who opens it.
KIND = "predictor"


@dataclass(frozen=True, eq=False)
class Dataset:
    """Profiles of one model and their scores; a layout and counts say what a level cannot.

    Attributes:
        layout: The units.
        profiles: What was measured.
        scores: Of each, finite.
        fidelities: On which tokens, ``n`` of them.
        stages: Of the search, from 1; by default all of the first. Each has a supernet of its
            own, in which the same profile scores otherwise.
        facts: How the scores were made.
    """

    layout: Layout
    profiles: Sequence[SparsityProfile]
    scores: Sequence[float]
    fidelities: Sequence[Fidelity]
    stages: Sequence[int] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.profiles)

    @cached_property
    def digest(self) -> str:
        """Identifies the pairs and how they were made: 16 hexadecimal digits."""
        return digest(self.to_json())

    def pairs(self, space: Space) -> Pairs:
        """Return the pairs as another space of the same model describes them.

        A profile takes the real levels at which the genes have its shares, also beyond the
        reach of the space; scores of one fidelity in one stage are a group.

        Raises:
            ConfigError: The space is over another model, or the data set has not what its
                levels are.
        """
        if not isinstance(space, SearchSpace):
            raise ConfigError("a data set needs a space whose genes are units, e.g. per_linear")
        if self.layout.digest != space.layout.digest:
            raise ConfigError(
                f"the data set is of {self.layout}, layout {self.layout.digest}, and the search "
                f"of {space.layout}, layout {space.layout.digest}: measure the same model anew"
            )
        levels = real_levels(space, self.profiles)
        numbers: dict[tuple[Fidelity, int], int] = {}
        kinds = zip(self.fidelities, self._stages, strict=True)
        groups = [numbers.setdefault(kind, len(numbers)) for kind in kinds]
        blocks = Features(space).blocks(levels)
        return Pairs(blocks, log_scores(np.array(self.scores)), np.array(groups, dtype=np.int64))

    def to_json(self) -> dict[str, Any]:
        """Return the data set as a JSON object: counts, one list for each pair."""
        pairs = [
            {
                "removed": list(profile.removed),
                **({"patterns": list(profile.patterns)} if profile.patterns else {}),
                "score": score,
                "tokens": fidelity.tokens,
                "subset": fidelity.subset,
                **({"stage": stage} if stage > 1 else {}),
            }
            for profile, score, fidelity, stage in zip(
                self.profiles, self.scores, self.fidelities, self._stages, strict=True
            )
        ]
        return {
            "format": FORMAT,
            "kind": KIND,
            "facts": dict(self.facts),
            "digest": self.layout.digest,
            "layout": self.layout.to_json(),
            "pairs": pairs,
        }

    @property
    def _stages(self) -> Sequence[int]:
        return self.stages or (1,) * len(self)

    @classmethod
    def from_json(cls, value: Any) -> Dataset:
        """Return the data set that `to_json` described.

        Raises:
            ConfigError: It is none, of another format, or corrupt.
        """
        if not isinstance(value, dict) or value.get("kind") != KIND:
            raise ConfigError("not the data set of a predictor")
        if value.get("format") != FORMAT:
            raise ConfigError(
                f"data set format {value.get('format')!r} is not known; this is format {FORMAT}"
            )
        try:
            layout = Layout.from_json(value["layout"])
            pairs = value["pairs"]
            profiles = [
                SparsityProfile(layout, tuple(p["removed"]), tuple(p.get("patterns", ())))
                for p in pairs
            ]
            scores = [float(p["score"]) for p in pairs]
            fidelities = [Fidelity(p["tokens"], p["subset"]) for p in pairs]
            stages = [int(p.get("stage", 1)) for p in pairs]
            stated, facts = value["digest"], value["facts"]
        except (KeyError, TypeError, ValueError, ProfileError) as error:
            raise ConfigError(f"corrupt data set: {error}") from error
        if stated != layout.digest or not np.isfinite(scores).all():
            raise ConfigError("corrupt data set: its digest or its scores are not right")
        return cls(layout, profiles, scores, fidelities, stages, facts)


def real_levels(space: SearchSpace, profiles: Sequence[SparsityProfile]) -> np.ndarray:
    """Return the real levels of profiles, ``(n, n_genes)``: of a candidate's, its own.

    Between levels, and beyond the last one at its slope, the share that counts for the budget
    decides.

    Raises:
        ConfigError: The space's levels are patterns that the profiles do not have.
    """
    if space.options is not None and not all(profile.patterns for profile in profiles):
        raise ConfigError("the space has options, and the data set's profiles no patterns")
    saved = np.array([space.saved(profile) for profile in profiles], dtype=np.float64)
    saved = saved.reshape(len(profiles), len(space.layout))
    found = np.empty((len(profiles), space.n_genes))
    for gene, units in enumerate(space.genes):
        levels = np.arange(space.levels.lower[gene], space.levels.upper[gene] + 1)
        known = np.array([space.gene_saved(gene, int(level)).sum() for level in levels], float)
        found[:, gene] = _extended(saved[:, list(units)].sum(axis=1), known, levels)
    return found


def read_dataset(path: Path) -> Dataset:
    """Return the data set in a file; it is read once for each time it was written.

    Raises:
        ConfigError: No such file, or it holds no data set; the message names the file.
    """
    try:
        status = path.stat()
        return _read(path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise ConfigError(f"cannot read the data set {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


@lru_cache(maxsize=4)
def _read(path: Path, _written: int, _size: int) -> Dataset:
    return Dataset.from_json(json.loads(path.read_text(encoding="utf-8")))


def _extended(x: np.ndarray, known: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return ``levels`` at ``x`` between increasing ``known``, and on straight lines beyond."""
    if len(known) < 2:
        return np.full(len(x), float(levels[0]))
    found = np.interp(x, known, levels)
    below, above = x < known[0], x > known[-1]
    found[below] = levels[0] + (x[below] - known[0]) / (known[1] - known[0])
    found[above] = levels[-1] + (x[above] - known[-1]) / (known[-1] - known[-2])
    return np.asarray(found)
