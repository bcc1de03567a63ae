"""Ladders: rungs of rising fidelity, each with its tokens and its number of survivors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.stats import t  # type: ignore[import-untyped]

from sparsity_search.errors import ConfigError
from sparsity_search.spaces.levels import Candidate
from sparsity_search.trials.history import Fidelity, Measurement, rank


@dataclass(frozen=True, slots=True)
class Rung:
    """One step of the ladder.

    Attributes:
        tokens: Tokens that each candidate is measured on.
        survivors: Number of candidates that go on to the next rung, or survive the round.
    """

    tokens: int
    survivors: int
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # in configurations


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Multi-stage selection (EvoPress, arXiv 2410.14649, Algorithm 1).

    Args:
        candidates: New candidates in each round.
        rungs: The rungs, from the cheapest to the costliest.
        fresh: Draw new tokens each round. By default every rung has one fixed draw, so scores
            are comparable between rounds and a known candidate is never measured again.
        confidence: Confidence of a race: a candidate also leaves a rung when a paired one-sided
            t-test on the sequences of the rung finds it worse than the best one (F-Race,
            Birattari et al., GECCO 2002, with its pairwise comparison alone). Sequences nest and
            are read once, so that many rungs cost no more than the last of them.

    Raises:
        ConfigError: There is no rung, the tokens do not rise, a rung keeps no candidate or more
            than reach it, or the confidence does not lie in (0.5, 1).
    """

    candidates: int = 12
    rungs: tuple[Rung, ...] = (Rung(512, 2), Rung(2048, 1))
    fresh: bool = False
    confidence: float | None = None
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

    @property
    def top(self) -> int:
        """Index of the last rung."""
        return len(self.rungs) - 1

    def fidelity(self, rung: int, round_: int) -> Fidelity:
        """Return the tokens that candidates of a rung are measured on in a round."""
        return Fidelity(self.rungs[rung].tokens, subset=round_ if self.fresh else 0)

    def survivors(self, rung: int, measured: Sequence[Measurement]) -> list[Candidate]:
        """Return the candidates that go on from a rung, best first, without failed ones."""
        alive = [m for m in rank(measured) if not m.failed]
        if self.confidence is not None:
            alive = [m for m in alive if not _is_worse(m, alive[0], self.confidence)]
        return [m.candidate for m in alive[: self.rungs[rung].survivors]]


def _is_worse(found: Measurement, best: Measurement, confidence: float) -> bool:
    """Whether a candidate is worse than the best on equal sequences, by a paired t-test."""
    parts = np.array(found.score.parts) - np.array(best.score.parts)
    if len(parts) < 2 or not parts.any():
        return False
    error = parts.std(ddof=1) / math.sqrt(len(parts))
    return bool(parts.mean() > t.ppf(confidence, len(parts) - 1) * error)
