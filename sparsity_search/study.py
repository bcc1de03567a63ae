"""The one loop: ask → measure → climb the ladder → record. Running it again resumes it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from sparsity_search.history import Fidelity, History, Measurement, Score
from sparsity_search.ladder import Ladder
from sparsity_search.profile import SparsityProfile
from sparsity_search.rng import generator
from sparsity_search.searchers.base import Searcher
from sparsity_search.space import Candidate, SearchSpace


class Objective(Protocol):
    """Scores profiles on stated tokens; lower is better."""

    def __call__(self, profiles: Sequence[SparsityProfile], fidelity: Fidelity) -> Iterator[Score]:
        """Yield one score for each profile, in order."""


class Recorder(Protocol):
    """Keeps measurements for good."""

    def load(self) -> list[Measurement]:
        """Return what was recorded, oldest first."""

    def add(self, measurement: Measurement) -> None:
        """Record one measurement."""


@dataclass(frozen=True)
class Limits:
    """When a study ends. They are no part of what it computes.

    Args:
        rounds: Rounds after the initial one.
        seconds: Search time over all sessions of the study.
        stop: Asked before every measurement; true ends the study cleanly.
    """

    rounds: int | None = None
    seconds: float | None = None
    stop: Callable[[], bool] = field(default=lambda: False)


class _Stopped(Exception):
    """A limit was reached inside a round."""


@dataclass
class Study:
    """Searches a space for the candidate with the lowest score.

    The measurements recorded so far are replayed instead of measured, so the same loop starts,
    resumes and extends a study, and a resumed one equals an uninterrupted one.

    Args:
        space: Where to search.
        searcher: What to try next.
        objective: What a profile is worth.
        ladder: On how many tokens, and who survives.
        store: Where measurements are kept.
        initial: Candidates of round 0, measured at the top rung; the uniform one always is.
        seed: Of all random draws.
        on_measured: Called after each new or replayed measurement.
    """

    space: SearchSpace
    searcher: Searcher
    objective: Objective
    ladder: Ladder
    store: Recorder
    initial: Sequence[Candidate] = ()
    seed: int = 0
    on_measured: Callable[[Measurement], None] = field(default=lambda _: None)

    def run(self, limits: Limits) -> History:
        """Run until a limit is reached or the searcher has nothing left to try.

        Returns:
            The history; `History.survivors` are the winners, best first.
        """
        recorded = History(self.store.load())
        self._elapsed = max((m.elapsed for m in recorded.measurements), default=0.0)
        history = History()
        round_ = 0
        while limits.rounds is None or round_ <= limits.rounds:
            candidates = self._candidates(history, round_)
            if not candidates:
                break
            try:
                survivors = self._climb(candidates, round_, history, recorded, limits)
            except _Stopped:
                break
            history.close_round(survivors)
            round_ += 1
        return history

    def _candidates(self, history: History, round_: int) -> Sequence[Candidate]:
        if round_ == 0:
            return list(dict.fromkeys([self.space.uniform, *self.initial]))
        rng = generator(self.seed, "ask", round_)
        return self.searcher.ask(self.space, history, self.ladder.candidates, rng)

    def _climb(
        self,
        candidates: Sequence[Candidate],
        round_: int,
        history: History,
        recorded: History,
        limits: Limits,
    ) -> Sequence[Candidate]:
        """Take candidates up the ladder; the last survivors join them at the top rung."""
        top = self.ladder.top
        for rung in range(top if round_ == 0 else 0, top + 1):
            if rung == top:
                candidates = list(dict.fromkeys([*history.survivors, *candidates]))
            fidelity = self.ladder.fidelity(rung, round_)
            template = Measurement(
                round=round_, rung=rung, candidate=(), fidelity=fidelity, score=Score(0.0, ())
            )
            measured = self._measure(candidates, template, history, recorded, limits)
            candidates = self.ladder.survivors(rung, measured)
        return candidates

    def _measure(
        self,
        candidates: Sequence[Candidate],
        template: Measurement,
        history: History,
        recorded: History,
        limits: Limits,
    ) -> list[Measurement]:
        """Return a measurement of each candidate: known, replayed, or made now."""
        found: dict[Candidate, Measurement] = {}
        missing: list[Candidate] = []
        for candidate in candidates:
            known = history.known(template.fidelity, candidate)
            replayed = known or recorded.known(template.fidelity, candidate)
            if replayed is None:
                missing.append(candidate)
                continue
            found[candidate] = replayed
            if known is None:
                self._note(replayed, history)
        scores = self.objective([self.space.profile(c) for c in missing], template.fidelity)
        allowed = math.inf if limits.seconds is None else limits.seconds
        for candidate in missing:
            if limits.stop() or self._elapsed >= allowed:
                raise _Stopped
            started = time.monotonic()
            score = next(scores)
            seconds = time.monotonic() - started
            self._elapsed += seconds
            measurement = replace(
                template,
                candidate=candidate,
                score=score,
                seconds=seconds,
                elapsed=self._elapsed,
            )
            self.store.add(measurement)
            self._note(measurement, history)
            found[candidate] = measurement
        return [found[candidate] for candidate in candidates]

    def _note(self, measurement: Measurement, history: History) -> None:
        history.add(measurement)
        self.on_measured(measurement)
