"""The search loop: ask → measure → climb the ladder → record. Running it again resumes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from math import nan
from typing import Protocol

from sparsity_search.interfaces.searcher import Searcher
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.spaces.levels import Candidate
from sparsity_search.spaces.parametric import RefusedSettingError
from sparsity_search.spaces.space import Space
from sparsity_search.study.claims import Claims
from sparsity_search.trials.history import Fidelity, History, Measurement, Score
from sparsity_search.trials.ladder import Ladder
from sparsity_search.utils.random import create_generator

#: Seconds between checks for other workers' measurements while this one has no work.
_PAUSE = 0.02


class Objective(Protocol):
    """A function that scores profiles on given tokens; lower is better."""

    def __call__(
        self, profile: SparsityProfile, fidelity: Fidelity, known: Score | None = None
    ) -> Score:
        """Return the score of a profile.

        Args:
            profile: The profile.
            fidelity: Tokens to score it on.
            known: Score of the profile on the first of these tokens, which are not read again.
        """


class Recorder(Protocol):
    """Permanent storage of measurements."""

    def load(self, after: int = 0) -> list[Measurement]:
        """Return the recorded measurements, oldest first, without the first ``after``."""

    def add(self, measurement: Measurement) -> None:
        """Record one measurement."""


@dataclass(frozen=True)
class Limits:
    """Stopping limits. They never affect results.

    Args:
        rounds: Number of rounds after the initial one.
        seconds: Search time over all sessions of the study.
        stop: Function called before every measurement; True ends the study cleanly.
    """

    rounds: int | None = None
    seconds: float | None = None
    stop: Callable[[], bool] = field(default=lambda: False)


class _Stopped(Exception):
    """A limit was reached inside a round."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A search of a space for the candidate with the lowest score.

    Recorded measurements are replayed instead of repeated, so the same loop starts, resumes and
    extends a study, and a resumed study equals an uninterrupted one.

    Args:
        space: The search space.
        searcher: Searcher that proposes candidates.
        objective: Function that scores profiles.
        ladder: Tokens and survivors of each rung.
        store: Storage of the measurements.
        initial: Candidates of round 0, measured at the top rung in addition to the origin of
            the space.
        seed: Seed of all random draws.
        on_measured: Function called after each new or replayed measurement.
        claims: Claims of this worker, if others run the same study at the same time. All workers
            wait at the end of a round, so together they give the result of one alone.
    """

    space: Space
    searcher: Searcher
    objective: Objective
    ladder: Ladder
    store: Recorder
    initial: Sequence[Candidate] = ()
    seed: int = 0
    on_measured: Callable[[Measurement], None] = field(default=lambda _: None)
    claims: Claims | None = None

    def run(self, limits: Limits) -> History:
        """Run until a limit is reached or the searcher has nothing left to try.

        Returns:
            The history; `History.survivors` are the winners, best first.
        """
        run = _Run(self, limits)
        with suppress(_Stopped):
            self._search(run, limits.rounds)
        return run.history

    def replay(self, limits: Limits) -> History | None:
        """Return the result of `run` if all its measurements are recorded; else None."""
        silent = replace(self, on_measured=lambda _: None)
        run = _Run(silent, replace(limits, stop=lambda: True))
        try:
            silent._search(run, limits.rounds)
        except _Stopped:
            if limits.seconds is None or run.elapsed < limits.seconds:
                return None
        return run.history

    def _search(self, run: _Run, rounds: int | None) -> None:
        round_ = 0
        while rounds is None or round_ <= rounds:
            candidates = self._candidates(run.history, round_)
            if not candidates:
                return
            run.history.close_round(run.climb(candidates, round_))
            round_ += 1

    def _candidates(self, history: History, round_: int) -> Sequence[Candidate]:
        if round_ == 0:
            return list(dict.fromkeys([self.space.origin, *self.initial]))
        rng = create_generator(self.seed, "ask", round_)
        # candidates with equal first genes follow each other: an objective keeps what they share
        n = self.ladder.in_round(round_).candidates
        return sorted(self.searcher.ask(self.space, history, n, rng))


class _Run:
    """One run of a study: the recorded measurements, the history so far, and the clock."""

    def __init__(self, study: Study, limits: Limits) -> None:
        self.history = History(fresh=study.ladder.fresh)
        self._study = study
        self._limits = limits
        self._recorded = History(study.store.load())
        self.elapsed = max((m.elapsed for m in self._recorded.measurements), default=0.0)

    def climb(self, candidates: Sequence[Candidate], round_: int) -> Sequence[Candidate]:
        """Take candidates up the ladder; the last survivors join them, by default at the top."""
        ladder = self._study.ladder.in_round(round_)
        for rung in range(ladder.top if round_ == 0 else 0, ladder.top + 1):
            if ladder.joined(rung):
                candidates = list(dict.fromkeys([*self.history.survivors, *candidates]))
            empty = Measurement(
                round=round_,
                rung=rung,
                candidate=(),
                fidelity=ladder.fidelity(rung, round_),
                score=Score(0.0, ()),
            )
            candidates = ladder.survivors(rung, self._measure(candidates, empty))
        return candidates

    def _measure(self, candidates: Sequence[Candidate], empty: Measurement) -> list[Measurement]:
        """Return a measurement of each candidate: known, replayed, or made now by a worker."""
        found: dict[Candidate, Measurement] = {}
        try:
            self._look(candidates, empty.fidelity, found)
            while len(found) < len(candidates):
                if not self._work(candidates, empty, found):
                    self._check()
                    time.sleep(_PAUSE)
                    self._look(candidates, empty.fidelity, found)
        finally:
            # in a fixed order, also if other workers measured them
            for candidate in filter(found.__contains__, candidates):
                if self.history.known(empty.fidelity, candidate) is None:
                    self.history.add(found[candidate])
        return [found[candidate] for candidate in candidates]

    def _look(
        self,
        candidates: Sequence[Candidate],
        fidelity: Fidelity,
        found: dict[Candidate, Measurement],
    ) -> None:
        """Add known measurements to ``found``, including those of other workers."""
        if self._study.claims is not None:
            for new in self._study.store.load(after=len(self._recorded.measurements)):
                self._recorded.add(new)
                self.elapsed = max(self.elapsed, new.elapsed)
        for candidate in candidates:
            if candidate in found:
                continue
            known = self.history.known(fidelity, candidate)
            if known is None and (known := self._recorded.known(fidelity, candidate)) is not None:
                self._study.on_measured(known)
            if known is not None:
                found[candidate] = known

    def _work(
        self,
        candidates: Sequence[Candidate],
        empty: Measurement,
        found: dict[Candidate, Measurement],
    ) -> bool:
        """Measure candidates that no other worker claims, and return whether there were any."""
        claims, before = self._study.claims, len(found)
        for place in range(len(candidates)) if claims is None else claims.order(len(candidates)):
            candidate = candidates[place]
            if candidate in found:
                continue
            with nullcontext(True) if claims is None else claims.claim(place) as mine:
                if mine and claims is not None:  # it may have been recorded before it was free
                    self._look(candidates, empty.fidelity, found)
                if mine and candidate not in found:
                    found[candidate] = self._score(replace(empty, candidate=candidate))
        return len(found) > before

    def _check(self) -> None:
        limit = self._limits.seconds
        if self._limits.stop() or (limit is not None and self.elapsed >= limit):
            raise _Stopped

    def _score(self, empty: Measurement) -> Measurement:
        """Measure one candidate and record it; a refused setting is recorded as failed."""
        self._check()
        started = time.monotonic()
        try:
            profile = self._study.space.profile(empty.candidate)
            known = self.history.within(empty.fidelity, empty.candidate)
            start = None if known is None else known.score
            score = self._study.objective(profile, empty.fidelity, start)
        except RefusedSettingError:
            score = Score(nan, ())
        seconds = time.monotonic() - started
        self.elapsed += seconds
        seat = 0 if self._study.claims is None else self._study.claims.seat
        measurement = replace(
            empty, score=score, seconds=seconds, elapsed=self.elapsed, worker=seat
        )
        self._study.store.add(measurement)
        self._study.on_measured(measurement)
        return measurement
