"""Ladders: rungs of rising fidelity, each with its tokens and its number of survivors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import numpy as np
from scipy.special import stdtrit  # type: ignore[import-untyped]

from sparsity_search.errors import ConfigError
from sparsity_search.spaces.levels import Candidate
from sparsity_search.trials.history import Fidelity, Measurement, rank

#: Rungs that the numbers of draws leave room for in each round.
_RUNGS = 1000


class _Described:
    """A dataclass whose ``repr`` leaves out settings of ``later`` that have their default.

    The fingerprint of a search holds this text: searches without a setting that was added later
    keep theirs.
    """

    __slots__ = ()
    later: ClassVar[frozenset[str]]

    def __repr__(self) -> str:
        values = ((f, getattr(self, f.name)) for f in fields(self))  # type: ignore[arg-type]
        shown = [
            f"{f.name}={value!r}"
            for f, value in values
            if f.name not in self.later or value != f.default
        ]
        return f"{type(self).__qualname__}({', '.join(shown)})"


@dataclass(frozen=True, slots=True, repr=False)
class Rung(_Described):
    """One step of the ladder.

    Attributes:
        tokens: Tokens that each candidate is measured on.
        survivors: Number of candidates that go on to the next rung, or survive the round.
        parents: Whether the survivors of the last round join here; by default at the last rung
            alone.
    """

    tokens: int
    survivors: int
    parents: bool | None = None
    later: ClassVar[frozenset[str]] = frozenset({"parents"})
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # in configurations


@dataclass(frozen=True, kw_only=True)
class Generation:
    """The candidates of a round that differs from the others, and their rungs.

    Attributes:
        candidates: New candidates in the round.
        rungs: The rungs, from the cheapest to the costliest.
    """

    candidates: int
    rungs: tuple[Rung, ...]
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # in configurations


@dataclass(frozen=True, kw_only=True, repr=False)
class Ladder(_Described):
    """Multi-stage selection (EvoPress, arXiv 2410.14649, Algorithm 1).

    Args:
        candidates: New candidates in each round.
        rungs: The rungs, from the cheapest to the costliest.
        fresh: Draw new tokens each round. By default every rung has one fixed draw, so scores
            are comparable between rounds and a known candidate is never measured again.
        confidence: Confidence of a race: a candidate also leaves a rung when a paired one-sided
            t-test on the sequences of the rung finds it worse than the best one (F-Race,
            Birattari et al., GECCO 2002, with its pairwise comparison alone). Where rungs nest,
            many of them cost no more than the last one.
        nested: A rung holds the tokens of the rungs before it, which are not read again. If
            false, each rung has a draw of its own, as in the released code of EvoPress: what won
            a rung is then not compared with its parent on the tokens that it was chosen by.
        first: Candidates and rungs of round 1, the first after the starts; by default those of
            all rounds.

    Raises:
        ConfigError: There is no rung, the tokens do not rise, a rung keeps no candidate or more
            than reach it, or the confidence does not lie in (0.5, 1).
    """

    candidates: int = 12
    rungs: tuple[Rung, ...] = (Rung(512, 2), Rung(2048, 1))
    fresh: bool = False
    confidence: float | None = None
    nested: bool = True
    first: Generation | None = None
    later: ClassVar[frozenset[str]] = frozenset({"nested", "first"})
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # in configurations

    def __post_init__(self) -> None:
        if self.confidence is not None and not 0.5 < self.confidence < 1:
            raise ConfigError(f"the ladder's confidence must lie in (0.5, 1): {self.confidence}")
        if not self.rungs or self.candidates < 1:
            raise ConfigError("a ladder needs at least one rung and one candidate")
        tokens = [rung.tokens for rung in self.rungs]
        if sorted(set(tokens)) != tokens or tokens[0] < 1:
            raise ConfigError(f"the tokens of a ladder's rungs must rise, not {tokens}")
        entering = self.candidates
        for rung in self.rungs:
            if not 1 <= rung.survivors <= entering:
                raise ConfigError(
                    f"the rung of {rung.tokens} tokens keeps {rung.survivors} of {entering}"
                )
            entering = rung.survivors
        self.in_round(1)  # raises if the first generation is not legal

    def check(self, n_sequences: int, length: int) -> None:
        """Check that all rungs can be measured on a pool of sequences.

        Args:
            n_sequences: How many there are.
            length: Tokens in each.

        Raises:
            ConfigError: A rung is not a whole number of sequences, or there are too few.
        """
        available = n_sequences * length
        for rung in (rung for ladder in self.generations for rung in ladder.rungs):
            if rung.tokens % length or rung.tokens > available:
                raise ConfigError(
                    f"a rung of {rung.tokens} tokens is not a whole number of sequences of "
                    f"{length}, or more than the {available} of the search text: change "
                    "ladder.rungs, data.search_length or data.search_sequences"
                )

    @property
    def top(self) -> int:
        """Index of the last rung."""
        return len(self.rungs) - 1

    def in_round(self, round_: int) -> Ladder:
        """Return the ladder of a round: another one in round 1 if there is a `first`."""
        if round_ != 1 or self.first is None:
            return self
        return replace(self, candidates=self.first.candidates, rungs=self.first.rungs, first=None)

    @property
    def generations(self) -> tuple[Ladder, ...]:
        """The ladders of all rounds: that of round 1 if it differs, and that of the others."""
        return tuple(dict.fromkeys((self.in_round(1), self)))

    @property
    def round_tokens(self) -> int:
        """Tokens that the new candidates of a round are measured on, all together."""
        entering = [self.candidates, *(rung.survivors for rung in self.rungs)]
        return sum(n * rung.tokens for n, rung in zip(entering, self.rungs, strict=False))

    def joined(self, rung: int) -> bool:
        """Whether the survivors of the last round join the candidates at a rung."""
        stated = self.rungs[rung].parents
        return rung == self.top if stated is None else stated

    def fidelity(self, rung: int, round_: int) -> Fidelity:
        """Return the tokens that candidates of a rung are measured on in a round."""
        draw = round_ if self.fresh else 0
        return Fidelity(
            self.rungs[rung].tokens, subset=draw if self.nested else draw * _RUNGS + rung
        )

    def survivors(self, rung: int, measured: Sequence[Measurement]) -> list[Candidate]:
        """Return the candidates that go on from a rung, best first, without failed ones."""
        alive = [m for m in rank(measured) if not m.failed]
        if self.confidence is not None:
            alive = [
                m
                for m in alive
                if not is_worse(m.score.parts, alive[0].score.parts, self.confidence)
            ]
        return [m.candidate for m in alive[: self.rungs[rung].survivors]]


def is_worse(found: Sequence[float], best: Sequence[float], confidence: float) -> bool:
    """Return whether scores are worse than others on equal sequences, by a paired t-test.

    Args:
        found: A candidate's score of each sequence; lower is better.
        best: The best candidate's, of the same sequences.
        confidence: Confidence of the one-sided test.
    """
    parts = np.array(found) - np.array(best)
    if len(parts) < 2 or not parts.any():
        return False
    error = parts.std(ddof=1) / math.sqrt(len(parts))
    return bool(parts.mean() > stdtrit(len(parts) - 1, confidence) * error)
