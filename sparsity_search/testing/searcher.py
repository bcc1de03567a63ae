"""The rules that every searcher keeps, see `interfaces.searcher.Searcher`."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest

from sparsity_search.errors import ConfigError
from sparsity_search.interfaces.searcher import Searcher
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.spaces.levels import Candidate, SearchSpace
from sparsity_search.spaces.parameters import stepped
from sparsity_search.spaces.parametric import RefusedSettingError
from sparsity_search.spaces.space import Space
from sparsity_search.testing.problems import (
    SeparableProblem,
    build_parametric_spaces,
    build_uneven_spaces,
    toy_history,
    toy_parametric,
    toy_space,
)
from sparsity_search.trials.history import History
from sparsity_search.utils.random import create_generator

#: Lower bounds; with their complement as the upper ones the first unit cannot move.
PINNED = np.array([0.5, 0.1, 0.2, 0.0, 0.0, 0.3])
SPACES: dict[str, Space] = {
    "equal": toy_space(),
    "mixed sizes": toy_space(40, 1000, 55, 90, 230, 100, 100, 61),
    "tied": toy_space(100, 50, 70, 100, 50, 70, genes=((0, 3), (1, 4), (2,), (5,))),
    "bounds": toy_space(100, 200, 300, 100, lower=0.35, upper=0.65),
    "pinned": toy_space(100, 50, 50, 100, 80, 90, lower=PINNED, upper=1 - PINNED),
    "steep": toy_space(*(100,) * 8, target=0.9, reach=20),
    **build_uneven_spaces(),
    **build_parametric_spaces(),
}
TINY = toy_space(100, 100, reach=1)  # three candidates
ONE_GENE = toy_space(100, 100, genes=((0, 1),))  # one candidate
FEW = toy_parametric(stepped("tilt", -1.0, 1.0, 0.5))  # five candidates


#: Spaces that differ in their steps, bounds, roles and kinds of values.
DIFFERENT = ("equal", "tied", "pinned", "*:8", "width", "blocks", "parameters", "refusals")
#: Spaces in which every gene can move from the start.
OPEN = ("equal", "*:8", "sublayers", "prices", "parameters", "names")
#: One space of each class, and one of two levels.
FEWEST = ("equal", "blocks", "parameters")


class SearcherContract:
    """Inherit in a test module that has a fixture ``searcher``: a new one with its defaults.

    Spaces are of levels and of parameters; a searcher that does not support parameters refuses
    them with a `ConfigError`.
    """

    def test_is_a_value(self, searcher: Searcher) -> None:
        """Equal settings are equal, hashable, and print as one line."""
        assert searcher == type(searcher)()
        assert hash(searcher) == hash(type(searcher)())
        assert "\n" not in repr(searcher)

    def test_reads_no_files_by_default(self, searcher: Searcher) -> None:
        """By default a searcher has no files, so its data have no digest."""
        assert searcher.data_digest() is None

    @pytest.mark.parametrize("name", DIFFERENT)
    def test_candidates_are_legal_new_and_distinct(self, searcher: Searcher, name: str) -> None:
        """Up to ``n`` distinct candidates of the space that were never measured."""
        space, history = SPACES[name], noisy_history(searcher, name)
        for n in (1, 8):
            candidates = searcher.ask(space, history, n, create_generator(0, "a"))
            assert 1 <= len(candidates) <= n
            assert len(set(candidates)) == len(candidates)
            assert not set(candidates) & history.seen
            assert_legal(space, candidates)

    @pytest.mark.parametrize("name", FEWEST)
    def test_pure(self, searcher: Searcher, name: str) -> None:
        """Equal arguments give equal candidates, regardless of earlier calls and draws.

        The history and the global random states do not change.
        """
        space, history = SPACES[name], noisy_history(searcher, name)
        before = copy.deepcopy(history)
        python, numpy_ = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002
        first = searcher.ask(space, history, 4, create_generator(0, "a"))
        assert random.getstate() == python
        np.testing.assert_equal(np.random.get_state(legacy=False), numpy_)  # noqa: NPY002
        assert history == before
        searcher.ask(space, history, 4, create_generator(0, "b"))
        random.random()
        np.random.random()  # noqa: NPY002
        assert list(searcher.ask(space, history, 4, create_generator(0, "a"))) == list(first)
        assert list(type(searcher)().ask(space, before, 4, create_generator(0, "a"))) == list(
            first
        )

    @pytest.mark.parametrize("name", OPEN)
    def test_all_genes_move(self, searcher: Searcher, name: str) -> None:
        """In an open space every gene is tried away from where it was."""
        space = SPACES[name]
        history = build_history(searcher, SeparableProblem(space), rounds=0)
        found = np.array(searcher.ask(space, history, 48, create_generator(0, "a")))
        assert (found != np.array(history.survivors[0])).any(axis=0).all()

    @pytest.mark.parametrize(("space", "size"), [(TINY, 3), (ONE_GENE, 1), (FEW, 5)])
    def test_exhausted_space(self, searcher: Searcher, space: Space, size: int) -> None:
        """A study ends when the space has nothing new left, and not before."""
        history = build_history(searcher, SeparableProblem(space), rounds=20)
        assert len(history.seen) == size
        assert len(history.winners) < 20

    def test_all_failed(self, searcher: Searcher) -> None:
        """Where no score is finite, candidates are legal and new all the same."""
        space = SPACES["equal"]
        history = toy_history(searcher, SeparableProblem(space, fails=lambda _: True))
        candidates = searcher.ask(space, history, 8, create_generator(0, "a"))
        assert not set(candidates) & history.seen
        assert_legal(space, candidates)


@cache
def noisy_history(searcher: Searcher, name: str) -> History:
    """Return two rounds of a noisy toy study; tests read it only."""
    return build_history(searcher, SeparableProblem(SPACES[name], noise=1.0))


def build_history(searcher: Searcher, problem: SeparableProblem, rounds: int = 2) -> History:
    """Return `toy_history`; skip the test if the searcher refuses a space of parameters."""
    if not problem.space.parameters:
        return toy_history(searcher, problem, rounds)
    try:
        return toy_history(searcher, problem, rounds)
    except ConfigError as refusal:
        pytest.skip(str(refusal))


def assert_legal(space: Space, candidates: Sequence[Candidate]) -> None:
    """Assert that candidates are tuples of integers in the space, which meet budget and bounds."""
    for candidate in candidates:
        assert isinstance(candidate, tuple)
        assert all(type(level) is int for level in candidate)
        assert candidate in space
        with contextlib.suppress(RefusedSettingError):
            assert_meets(space.of_levels, space.profile(candidate))


def assert_meets(space: SearchSpace, profile: SparsityProfile) -> None:
    """Assert that a profile of a space of levels meets its budget and bounds."""
    surplus = space.saved(profile).sum() - space.budget.n_removed(space.layout)
    assert 0 <= surplus < compute_slack(space, space.nearest(profile))
    removed = np.array(profile.removed)
    assert (space.bounds.lower <= removed).all()
    assert (removed <= space.bounds.upper).all()


def compute_slack(space: SearchSpace, candidate: Candidate) -> int:
    """Return the upper bound of the surplus: the least saving that one level less loses."""
    steps = [
        (space.gene_saved(gene, level) - space.gene_saved(gene, level - 1)).sum()
        for gene, level in enumerate(candidate)
        if level > space.limits.lower[gene]
    ]
    return int(min(steps, default=1))
