"""Candidates of one search with their scores, kept for others: other budgets, other spaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from sparsity_search.errors import ConfigError, show_value, told_of
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.searchers.bases.features import Features
from sparsity_search.searchers.bases.models import TrainingPairs
from sparsity_search.searchers.bases.training import log_scores
from sparsity_search.spaces.space import Space
from sparsity_search.trials.history import Fidelity
from sparsity_search.utils.files import compute_digest
from sparsity_search.utils.shapes import Count, Shape, Size
from sparsity_search.utils.versioned import VersionedJson

#: What the file is, for who opens it.
KIND = "predictor"


class _PairShape(Shape):
    """A profile and its score in the file of a data set."""

    removed: list[Count]
    patterns: list[str] = Field([])
    score: float
    tokens: Size
    subset: Count
    stage: Size = 1


class _DatasetShape(Shape):
    """The file of a data set."""

    kind: str
    digest: str
    facts: dict[str, Any]
    layout: list[Any]
    pairs: list[_PairShape]


#: Key of the facts: the record of the model.
MEASURED_ON = "measured_on"
#: The file of a data set.
DATASET_JSON = VersionedJson("the data set of a predictor", 1, _DatasetShape, ConfigError)


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
        return compute_digest(self.to_json())

    def pairs(self, space: Space) -> TrainingPairs:
        """Return the pairs as another space of the same model describes them.

        A profile takes the real levels at which the genes have its shares, also beyond the
        reach of the space; scores of one fidelity in one stage are a group.

        Raises:
            ConfigError: The space is over another model, or the data set has not what its
                levels are.
        """
        if self.layout.digest != space.layout.digest:
            raise ConfigError(
                f"the data set is of {self.layout}, layout {self.layout.digest}, and the search "
                f"of {space.layout}, layout {space.layout.digest}: measure the same model anew"
            )
        levels = space.real_levels(self.profiles)
        numbers: dict[tuple[Fidelity, int], int] = {}
        kinds = zip(self.fidelities, self._stages, strict=True)
        groups = [numbers.setdefault(kind, len(numbers)) for kind in kinds]
        blocks = Features(space).blocks(levels)
        return TrainingPairs(
            blocks, log_scores(np.array(self.scores)), np.array(groups, dtype=np.int64)
        )

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
            "format": DATASET_JSON.version,
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
        stored = _DatasetShape.model_validate(DATASET_JSON.check(value))
        if stored.kind != KIND:
            raise ConfigError(f"not {DATASET_JSON.kind}, but of kind {show_value(stored.kind)}")
        with told_of("corrupt data set", ConfigError):
            layout = Layout.from_json(stored.layout)
            profiles = [
                SparsityProfile(layout, tuple(pair.removed), tuple(pair.patterns))
                for pair in stored.pairs
            ]
        if stored.digest != layout.digest:
            raise ConfigError("corrupt data set: its digest is not that of its layout")
        return cls(
            layout,
            profiles,
            scores=[pair.score for pair in stored.pairs],
            fidelities=[Fidelity(pair.tokens, pair.subset) for pair in stored.pairs],
            stages=[pair.stage for pair in stored.pairs],
            facts=stored.facts,
        )


def read_dataset(path: Path) -> Dataset:
    """Return the data set in a file; it is read once for each time it was written.

    Raises:
        ConfigError: No such file, or it holds no data set; the message names the file.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise ConfigError(f"cannot read the data set {path}: {error.strerror}") from error
    return _read(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _read(path: Path, _written: int, _size: int) -> Dataset:
    value = DATASET_JSON.read(path)
    with told_of(path):
        return Dataset.from_json(value)
