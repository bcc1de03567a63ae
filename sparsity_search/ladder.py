"""Rungs of rising fidelity: how many tokens each candidate is measured on, and who goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsity_search.errors import ConfigError
from sparsity_search.history import Fidelity, Measurement, rank
from sparsity_search.space import Candidate


@dataclass(frozen=True, slots=True)
class Rung:
    """One step of the ladder.

    Attributes:
        tokens: Tokens that each candidate is measured on.
        survivors: How many go on to the next rung, or become the next round's parents.
    """

    tokens: int
    survivors: int


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Multi-stage selection (EvoPress, arXiv 2410.14649, Algorithm 1).

    Args:
        candidates: New candidates in each round.
        rungs: From the cheapest to the dearest.
        fresh: Draw new tokens each round. By default every rung has one fixed draw, so scores
            are comparable between rounds and a known candidate is never measured again.

    Raises:
        ConfigError: No rung, tokens that do not rise, or a rung that keeps nobody or more
            candidates than reach it.
    """

    candidates: int = 12
    rungs: tuple[Rung, ...] = (Rung(512, 2), Rung(2048, 1))
    fresh: bool = False

    def __post_init__(self) -> None:
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
        """Return who goes on from a rung, best first; failed candidates never do."""
        alive = [m.candidate for m in rank(measured) if not m.failed]
        return alive[: self.rungs[rung].survivors]
