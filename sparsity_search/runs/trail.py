"""The trail of a search: each candidate that a step of its plan brought, in ``steps.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsity_search.errors import RunMismatchError
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.runs.shapes import StepsShape
from sparsity_search.utils.versioned import VersionedJson

STEPS_JSON = VersionedJson("the steps of a run", 1, StepsShape, RunMismatchError)


@dataclass(frozen=True)
class StepRecord:
    """One candidate of a search.

    Attributes:
        name: Its name.
        key: Digest of all that its profile depends on besides the run's fingerprint.
        profile: Its profile.
        pruner: Name and settings of the pruner that it was rebuilt with.
        row: Its row of the table of results.
        parts: Its score of each sequence of the final text.
        best: Whether it replaced the best candidate so far.
        seconds: Time since the candidate before it, in the session that made it.
        elapsed: Time of the whole job at its end, in seconds.
        notes: Remarks of the allocator or the pruner.
    """

    name: str
    key: str
    profile: SparsityProfile
    pruner: Mapping[str, Any]
    row: Mapping[str, Any]
    parts: Sequence[float]
    best: bool
    seconds: float
    elapsed: float
    notes: Sequence[str] = ()

    @property
    def score(self) -> float | None:
        """Its score; None if that is not finite."""
        return self.row.get("score")

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON object."""
        parts = [part if math.isfinite(part) else None for part in self.parts]
        return {**vars(self), "profile": self.profile.to_json(), "parts": parts}

    @classmethod
    def from_json(cls, layout: Layout, value: Mapping[str, Any]) -> StepRecord:
        """Return the record in a JSON object of `to_json`.

        Raises:
            ProfileError: The profile is of other units.
        """
        parts = [math.inf if part is None else part for part in value["parts"]]
        profile = SparsityProfile.from_json(layout, value["profile"])
        return cls(**{**value, "profile": profile, "parts": parts})


class Trail:
    """The records of a run, in a file.

    Args:
        file: The file; it need not exist.
        layout: The prunable units.

    Raises:
        RunMismatchError: The file is corrupt.
    """

    def __init__(self, file: Path, layout: Layout) -> None:
        self._file = file
        self.records: list[StepRecord] = []
        self.seconds = 0.0
        self._times: dict[str, list[float]] = {}
        if file.exists():
            stored = STEPS_JSON.read(file)
            self.seconds = float(stored["seconds"])
            self._times = stored.get("studies", {})
            self.records = [StepRecord.from_json(layout, step) for step in stored["steps"]]

    def find(self, key: str, pruner: Mapping[str, Any] | None = None) -> StepRecord | None:
        """Return the record of a key, if there is one.

        Args:
            key: The key.
            pruner: Pruner of the record; None for any.
        """
        for record in self.records:
            if record.key == key and pruner in (None, record.pruner):
                return record
        return None

    def allot(self, study: str, limit: float, seconds: float) -> float:
        """Return the seconds that a study may take in all: as much as before, and more minutes.

        Args:
            study: Digest of what the study starts from.
            limit: Limit of the whole job, in seconds.
            seconds: Time for a study that is not known yet.
        """
        if study in self._times:
            before, seconds = self._times[study]
            seconds += limit - before
        self._times[study] = [limit, round(seconds, 3)]
        return max(seconds, 0.0)

    def knows(self, study: str) -> bool:
        """Whether a study was begun."""
        return study in self._times

    def keep(self, records: Sequence[StepRecord], seconds: float) -> None:
        """Replace the records.

        Args:
            records: All records, in their order.
            seconds: Time of the whole job so far.
        """
        self.records, self.seconds = list(records), round(seconds, 3)
        steps = [record.to_json() for record in records]
        facts = {"seconds": self.seconds, "studies": self._times, "steps": steps}
        STEPS_JSON.write(self._file, facts)
