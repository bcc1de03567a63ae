"""The base class of searchers, and a plugin that a stranger would write."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from sparsity_search.interfaces.searcher import Searcher, Space, take_new
from sparsity_search.spaces.levels import Candidate
from sparsity_search.testing.problems import SeparableProblem, toy_history, toy_space
from sparsity_search.testing.searcher import SearcherContract
from sparsity_search.trials.history import History
from sparsity_search.utils.random import create_generator

SPACE = toy_space()
TINY = toy_space(100, 100, reach=1)  # three candidates


@dataclass(frozen=True, kw_only=True)
class DescentSearcher(Searcher):
    """Moves of the best candidate between two genes, in a random order.

    Args:
        stride: Levels that a move changes.
    """

    stride: int = 2

    def propose(
        self, space: Space, history: History, n: int, rng: np.random.Generator
    ) -> Iterator[Candidate]:
        """Yield neighbours of the best candidate."""
        pairs = list(itertools.combinations(range(space.n_genes), 2))
        rng.shuffle(pairs)
        for best in history.survivors[:1]:
            for pair in pairs:
                yield space.switch(best, rng, self.stride, pair) or best


class TestDescent(SearcherContract):
    @pytest.fixture
    def searcher(self) -> Searcher:
        return DescentSearcher()


@dataclass(frozen=True)
class Fixed(Searcher):
    """Proposes given candidates."""

    candidates: tuple[Candidate, ...]
    endless: bool = False

    def propose(
        self, space: Space, history: History, n: int, rng: np.random.Generator
    ) -> Iterator[Candidate]:
        return itertools.cycle(self.candidates) if self.endless else iter(self.candidates)


@dataclass(frozen=True)
class Alone(Fixed):
    """Ends the study when its proposals run out."""

    def fallback(self, space: Space, rng: np.random.Generator) -> Iterator[Candidate]:
        return iter(())


def drawn(seed: int, n: int) -> tuple[Candidate, ...]:
    rng = create_generator(seed, "drawn")
    return tuple(take_new((SPACE.sample(rng, 2.0) for _ in range(10 * n)), n, {SPACE.origin}))


@pytest.fixture
def history() -> History:
    return toy_history(Fixed(()), SeparableProblem(SPACE), rounds=1)


def test_proposals_come_first_in_their_order(history: History) -> None:
    new = [candidate for candidate in drawn(0, 12) if candidate not in history.seen]
    assert len(new) > 4
    repeats = (new[0], SPACE.origin, *new[:3], new[1], *new[3:])
    assert Fixed(repeats).ask(SPACE, history, 4, create_generator(0)) == new[:4]


@pytest.mark.parametrize("endless", [False, True])
def test_a_short_round_is_filled_at_random(history: History, endless: bool) -> None:
    first = next(candidate for candidate in drawn(0, 12) if candidate not in history.seen)
    searcher = Fixed((SPACE.origin, first), endless)
    asked = searcher.ask(SPACE, history, 6, create_generator(0))
    assert asked[0] == first
    assert len(set(asked)) == 6
    assert not set(asked) & history.seen
    rng = create_generator(0)
    random = take_new(iter(lambda: SPACE.sample(rng), None), 5, {*history.seen, first})
    assert asked[1:] == random


def test_no_fallback_ends_the_study(history: History) -> None:
    first = next(candidate for candidate in drawn(0, 12) if candidate not in history.seen)
    assert Alone((first,)).ask(SPACE, history, 6, create_generator(0)) == [first]
    assert Alone(()).ask(SPACE, history, 6, create_generator(0)) == []


def test_the_fallback_finds_the_last_candidates() -> None:
    history = toy_history(Fixed((TINY.origin,), endless=True), SeparableProblem(TINY), rounds=9)
    assert len(history.seen) == 3
    assert Fixed(()).ask(TINY, history, 2, create_generator(0)) == []


def test_no_more_is_drawn_than_taken() -> None:
    source = iter([(1,), (1,), (2,), (3,), (4,)])
    assert take_new(source, 2, {(2,)}) == [(1,), (3,)]
    assert next(source) == (4,)
    assert take_new(itertools.repeat((1,)), 3, {(1,)}) == []
