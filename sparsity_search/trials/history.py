"""Measurements of candidates, and legal comparisons among them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING

from sparsity_search.spaces.levels import Candidate
from sparsity_search.utils.extras import require

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, slots=True)
class Fidelity:
    """The tokens that a candidate is measured on. Scores of equal fidelity may be compared.

    Attributes:
        tokens: Number of tokens.
        subset: Number of their random draw; equal tokens and subset mean the same text.
    """

    tokens: int
    subset: int = 0


@dataclass(frozen=True, slots=True)
class Score:
    """The score of an evaluator. Lower is better.

    Attributes:
        value: The score over all sequences.
        parts: The score of each sequence, in the order of the fidelity's draw.
    """

    value: float
    parts: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One candidate measured at one rung.

    Attributes:
        round: Round of the study; 0 holds the initial candidates.
        rung: Index of the ladder's rung.
        candidate: Level of each gene.
        fidelity: Tokens of the measurement.
        score: Score of the candidate; not finite if it failed.
        seconds: Duration of the measurement.
        elapsed: Search time of the study at its end, over all sessions, in seconds.
        worker: Number of the worker that made it.
    """

    round: int
    rung: int
    candidate: Candidate
    fidelity: Fidelity
    score: Score
    seconds: float = 0.0
    elapsed: float = 0.0
    worker: int = 0

    @property
    def failed(self) -> bool:
        """Whether the score is not finite."""
        return not isfinite(self.score.value)


def rank(measurements: Iterable[Measurement]) -> list[Measurement]:
    """Sort measurements of one fidelity: best first, failures last, ties in given order."""
    return sorted(measurements, key=lambda m: (m.failed, 0.0 if m.failed else m.score.value))


@dataclass
class History:
    """All measurements of a study, and the survivors of each completed round.

    Attributes:
        measurements: Oldest first.
        winners: The survivors of each completed round, best first.
        fresh: Whether every round is measured on tokens of its own.
    """

    measurements: list[Measurement] = field(default_factory=list)
    winners: list[tuple[Candidate, ...]] = field(default_factory=list)
    fresh: bool = False

    def __post_init__(self) -> None:
        self._by_key: dict[tuple[Fidelity, Candidate], Measurement] = {}
        self._of: dict[Candidate, list[Measurement]] = {}
        for measurement in self.measurements:
            self._index(measurement)

    def add(self, measurement: Measurement) -> None:
        """Append a measurement; the first of equal fidelity and candidate counts."""
        self.measurements.append(measurement)
        self._index(measurement)

    def _index(self, measurement: Measurement) -> None:
        self._by_key.setdefault(_get_key(measurement.fidelity, measurement.candidate), measurement)
        self._of.setdefault(measurement.candidate, []).append(measurement)

    def known(self, fidelity: Fidelity, candidate: Candidate) -> Measurement | None:
        """Return the measurement of ``candidate`` on exactly these tokens, if there is one."""
        return self._by_key.get(_get_key(fidelity, candidate))

    def within(self, fidelity: Fidelity, candidate: Candidate) -> Measurement | None:
        """Return the measurement of ``candidate`` on most, but not all, of these tokens, if any.

        Rungs nest: a fidelity of equal subset and fewer tokens holds the first of these tokens.
        """
        parts = [
            found
            for found in self._of.get(candidate, ())
            if found.fidelity.subset == fidelity.subset
            and found.fidelity.tokens < fidelity.tokens
            and not found.failed
        ]
        return max(parts, key=lambda m: m.fidelity.tokens, default=None)

    def close_round(self, survivors: Sequence[Candidate]) -> None:
        """Record the survivors of the round that ends now."""
        self.winners.append(tuple(survivors))

    def to_frame(self) -> DataFrame:
        """Return a row for each measurement, oldest first, as a table of pandas.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        require("a table", "frames", "pandas")
        from pandas import DataFrame

        rows = [
            {
                "round": m.round,
                "rung": m.rung,
                "tokens": m.fidelity.tokens,
                "draw": m.fidelity.subset,
                "candidate": m.candidate,
                "score": m.score.value,
                "failed": m.failed,
                "seconds": m.seconds,
                "elapsed": m.elapsed,
                "worker": m.worker,
            }
            for m in self.measurements
        ]
        return DataFrame(rows)

    @property
    def survivors(self) -> tuple[Candidate, ...]:
        """The candidates that survived the last completed round, best first."""
        return self.winners[-1] if self.winners else ()

    @property
    def seen(self) -> Set[Candidate]:
        """All candidates ever measured."""
        return self._of.keys()

    @property
    def excluded(self) -> Set[Candidate]:
        """The candidates that a new round leaves out: all that were measured.

        With fresh tokens a candidate may be proposed again, since it lost on other ones. Only the
        last survivors are left out then: they join the round anyway.
        """
        return frozenset(self.survivors) if self.fresh else self.seen


def _get_key(fidelity: Fidelity, candidate: Candidate) -> tuple[Fidelity, Candidate]:
    return fidelity, candidate
