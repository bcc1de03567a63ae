"""The interface of a searcher: what to try next is a pure function of what was measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar

import numpy as np

from sparsity_search.spaces.levels import Candidate
from sparsity_search.spaces.space import Space
from sparsity_search.trials.history import History

#: Most proposals that are drawn for each candidate that is needed.
_TRIES = 50


class Searcher(ABC):
    """Proposes candidates. Plugins are frozen keyword-only dataclasses of hyper-parameters.

    A plugin writes `propose`; a study calls `ask`. This is one round::

        ask    propose → keep new and distinct ones → fill up by fallback → n candidates
        study  measure the candidates rung by rung → add them to the history → ask again

    Rules for plugins:

    - A searcher has no state: the history is the state. Equal arguments give equal candidates,
      so a resumed study goes on exactly as an uninterrupted one (the Designer of Vizier,
      arXiv 2408.11527).
    - ``rng`` is the only source of randomness, and the history is only read.
    - Every proposal is a legal candidate: take it from a method of the space.
    - `Space.switch` returns None where the bounds allow no move of that stride: yield the parent
      then, or try a stride of 1.

    Attributes:
        experimental: Why users should prefer another searcher; empty if there is no reason.
    """

    experimental: ClassVar[str] = ""

    @abstractmethod
    def propose(
        self, space: Space, history: History, n: int, rng: np.random.Generator
    ) -> Iterator[Candidate]:
        """Yield candidates of ``space``, in order of preference.

        `ask` drops repeats and candidates that `History.excluded` holds. It takes at most
        ``50 n`` proposals, so the iterator may be endless.

        Args:
            space: Where to search.
            history: Everything measured in completed rounds; never empty, since round 0 measures
                the initial candidates. `History.survivors` are the parents; there are none if
                all candidates failed.
            n: How many new candidates the round needs.
            rng: The only source of randomness.
        """

    def fallback(self, space: Space, rng: np.random.Generator) -> Iterator[Candidate]:
        """Yield candidates for a round that the proposals do not fill: random ones.

        A plugin whose study ends with its proposals overrides this with an empty iterator.
        """
        while True:
            yield space.sample(rng)

    def ask(
        self, space: Space, history: History, n: int, rng: np.random.Generator
    ) -> Sequence[Candidate]:
        """Return the candidates of the next round, which are distinct.

        None was measured before; with fresh tokens in every round none is a survivor of the last
        one, see `History.excluded`.

        Returns:
            ``n`` candidates, or fewer where the space has hardly any new ones. An empty sequence
            ends the study.
        """
        new = take_new(self.propose(space, history, n, rng), n, history.excluded)
        if len(new) < n:
            others = self.fallback(space, rng)
            new += take_new(others, n - len(new), {*history.excluded, *new})
        return new

    def data_digest(self) -> str | None:
        """Return a digest of the files that the settings name; None if they name no file.

        A search is resumed only with the same digest, since the settings hold paths alone.
        """
        return None

    def data_model(self) -> Mapping[str, Any] | None:
        """Return what these files record of the model that they were measured on, if anything."""
        return None

    def notes(self, space: Space, history: History) -> tuple[str, ...]:
        """Return lines about the finished search, for its record; by default none."""
        del space, history
        return ()


def take_new(
    proposals: Iterable[Candidate], n: int, seen: Container[Candidate]
) -> list[Candidate]:
    """Return the first ``n`` distinct proposals that are not in ``seen``.

    Args:
        proposals: Candidates, repeats among them; may be endless. No more are drawn than needed,
            and at most ``50 n``.
        n: How many to take, at least 1. Fewer are returned if the proposals run out.
        seen: Candidates to leave out.
    """
    new: dict[Candidate, None] = {}
    for candidate in islice(proposals, _TRIES * n):
        if candidate not in seen:
            new[candidate] = None
        if len(new) == n:
            break
    return list(new)
