from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsity_search.errors import ConfigError, InfeasibleBudgetError, NumericalError
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.spaces.parameters import Parameter, spaced, stepped
from sparsity_search.spaces.parametric import (
    ParametricSpace,
    RefusedSettingError,
    compose,
    get_value,
)
from sparsity_search.testing.problems import build_parametric_spaces, toy_parametric, toy_space
from sparsity_search.utils.random import create_generator

SPACE = toy_parametric()


def small(**changes: Any) -> ParametricSpace:
    """Return a space of 3 × 4 settings over `toy_space`."""
    on = toy_space()
    arguments = {
        "parameters": (Parameter("a", ("x", "y", "z")), stepped("b", 0, 6, 2)),
        "allocate": lambda _: on.base,
        "of_levels": on,
    }
    return ParametricSpace(**{**arguments, **changes})


@given(
    low=st.integers(-50, 50), step=st.integers(1, 9), n=st.integers(1, 30), scale=st.integers(0, 3)
)
@settings(max_examples=60)
def test_steps(low: int, step: int, n: int, scale: int) -> None:
    whole = stepped("a", low, low + n * step, step)
    assert whole.values == tuple(range(low, low + n * step + 1, step))
    assert all(type(v) is int for v in whole.values)
    by = 10**scale
    fine = stepped("a", low / by, (low + n * step) / by, float(step / by))
    assert fine.values == tuple(v / by for v in whole.values)  # as they would be written
    assert (whole.ordered, whole.grid, fine.grid) == (True, "linear", "linear")


def test_points() -> None:
    assert spaced("a", 0, 1, 5).values == (0.0, 0.25, 0.5, 0.75, 1.0)
    found = spaced("a", 0.001, 10, 5, log=True)
    np.testing.assert_allclose(found.values, [0.001, 0.01, 0.1, 1, 10])
    assert (found.values[0], found.values[-1], found.grid) == (0.001, 10.0, "log")


@pytest.mark.parametrize("grid", [(0, 1, 0.3), (1, 1, 1), (2, 1, 1), (0, 1, -1), (0, 1, 0)])
def test_bad_steps(grid: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigError, match=r"a: .*whole number of steps"):
        stepped("a", *grid)


def test_grids_without_end_are_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="more than 10000 steps"):
        stepped("a", 0, 1, 1e-12)
    with pytest.raises(ConfigError, match="2 to 10000 points"):
        spaced("a", 0, 1, 10**9)


@pytest.mark.parametrize(
    ("grid", "log"),
    [((1, 1, 2), False), ((2, 1, 2), False), ((0, 1, 1), False), ((0, 1, 3), True)],
)
def test_bad_points(grid: tuple[float, float, int], log: bool) -> None:
    with pytest.raises(ConfigError, match="a needs"):
        spaced("a", *grid, log=log)


@pytest.mark.parametrize("values", [(), (1, 1), ("x", "y", "x")])
def test_bad_values(values: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigError, match="a needs distinct values"):
        Parameter("a", values)


@pytest.mark.parametrize(
    ("values", "ordered"),
    [
        ((1, 2.5), True),
        ((2, 1), False),
        ((False, True), False),
        (("a",), False),
        ((None, 1), False),
    ],
)
def test_what_has_an_order(values: tuple[Any, ...], ordered: bool) -> None:
    assert Parameter("a", values).ordered is ordered


@pytest.mark.parametrize(
    ("parameter", "value", "index"),
    [
        (Parameter("a", (3, 5, 7, 10)), 5.0, 1),
        (Parameter("a", (3, 5, 7, 10)), 8.9, 3),
        (Parameter("a", (-1.0, 0.0, 2.0)), None, 1),  # the one next to 0
        (Parameter("a", (-1.0, 0.0, 2.0)), "text", 1),
        (Parameter("a", ("x", "y")), "y", 1),
        (Parameter("a", ("x", "y")), "none", 0),
        (Parameter("a", (7, 3, 5)), 5, 2),
        (Parameter("a", (True, 1)), 1, 1),
        (Parameter("a", (None, 3)), None, 0),
        (spaced("a", 1, 100, 3, log=True), 4.0, 1),  # 10 is a factor of 2.5 away
        (spaced("a", 1, 19, 3), 4.0, 0),  # 10 is farther than 1
        (spaced("a", 1, 100, 3, log=True), -1.0, 0),
    ],
)
def test_nearest_value(parameter: Parameter, value: object, index: int) -> None:
    assert parameter.nearest(value) == index


def test_compose() -> None:
    given = {"knots": [1, 2, [3, 4]], "pruner": {"name": "wanda"}, "none": [], "per": "block"}
    found = compose(given, {"knots.2.0": 9, "pruner.damping": 0.1, "new.0": 1, "new.1": 2, "m": 5})
    assert found == {
        "knots": (1, 2, (9, 4)),
        "pruner": {"name": "wanda", "damping": 0.1},
        "none": (),
        "per": "block",
        "new": (1, 2),
        "m": 5,
    }
    assert given["knots"] == [1, 2, [3, 4]]
    many = compose({}, {f"a.{i}": i for i in reversed(range(12))})
    assert many == {"a": tuple(range(12))}  # 10 comes after 9


@pytest.mark.parametrize(
    ("given", "names", "message"),
    [
        ({"a": 1}, ["a.0"], "'a' is a value"),
        ({}, ["a", "a.0"], "'a' is a value"),
        ({}, ["a.0", "a"], "entries of it are parameters"),
        ({"a": [1]}, ["a"], "entries of it are parameters"),
        ({}, ["a.1"], "a needs entries numbered from 0 on, not 1"),
        ({"a": [1]}, ["a.2"], "not 0, 2"),
        ({}, ["a.0.1"], r"a\.0 needs entries"),
    ],
)
def test_names_that_do_not_fit(given: Mapping[str, Any], names: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose(given, dict.fromkeys(names, 0))


def test_value_at() -> None:
    @dataclass
    class Plugin:
        m: float = 5.0
        knots: tuple[float, ...] = (0.0, 0.5)
        offsets: tuple[tuple[str, float], ...] = (("q", 0.1),)

    found = [get_value(Plugin(), name) for name in ("m", "knots.1", "offsets.q")]
    assert found == [5.0, 0.5, 0.1]
    for name in ("n", "knots.2", "knots.x", "offsets.k", "m.x"):
        assert get_value(Plugin(), name) is None
    assert get_value(None, "m") is None


def test_starts_at_the_defaults() -> None:
    assert SPACE.values(SPACE.origin) == {
        "tilt": 0.0,
        "knots.0": 0.0,
        "knots.1": 0,
        "m": 1.0,
        "shape": "line",
    }
    assert small().origin == (0, 0)
    assert small(defaults={"a": "z", "b": 3.5}).origin == (2, 2)


def test_shape() -> None:
    assert (SPACE.n_genes, len(SPACE.roles)) == (5, 5)
    assert SPACE.roles == ("tilt", "knots.0", "knots.1", "m", "shape")
    assert SPACE.limits.upper.tolist() == [8, 3, 2, 2, 2]
    assert not SPACE.limits.lower.any()
    assert SPACE.unordered == {4}
    assert SPACE.hints == ()


def test_profiles_are_of_the_space_of_levels() -> None:
    for name, space in build_parametric_spaces().items():
        profile = space.profile(space.origin)
        for i in range(10):
            with contextlib.suppress(RefusedSettingError):
                profile = space.profile(space.sample(create_generator(i, name)))
            assert space.of_levels.profile(space.of_levels.nearest(profile)) == profile
            assert profile.n_removed == space.of_levels.base.n_removed


def test_settings_reach_the_allocator_once() -> None:
    on, calls = toy_space(), []

    def allocate(settings: Mapping[str, Any]) -> SparsityProfile:
        calls.append(dict(settings))
        return on.budget.project(on.layout, np.linspace(0.32, 0.68, 6), on.bounds)

    space = small(of_levels=on, allocate=allocate, settings={"per": "block", "knots": [1, 2]})
    for _ in range(2):
        # rounded: the allocation itself is not of the space, whose step is 10 weights
        assert space.profile((2, 1)).removed == (30, 40, 50, 50, 60, 70)
    assert calls == [{"per": "block", "knots": (1, 2), "a": "z", "b": 2}]
    space.profile((2, 2))
    assert len(calls) == 2


@pytest.mark.parametrize("kind", [ConfigError, InfeasibleBudgetError, NumericalError])
def test_a_refused_setting(kind: type[Exception]) -> None:
    def allocate(_: object) -> SparsityProfile:
        raise kind("too much")

    with pytest.raises(RefusedSettingError, match=r"no profile with .*'b': 4.*: too much"):
        small(allocate=allocate).profile((1, 2))


def test_other_errors_are_not_hidden() -> None:
    def allocate(_: object) -> SparsityProfile:
        raise LookupError("no such role")

    with pytest.raises(LookupError, match="no such role"):
        small(allocate=allocate).profile((1, 2))


@pytest.mark.parametrize("outsider", [(3, 0), (0, 4), (-1, 0), (0,), (0, 0, 0), [0, 0], None])
def test_outsiders(outsider: Any) -> None:
    space = small()
    assert outsider not in space
    if isinstance(outsider, tuple):
        with pytest.raises(ConfigError, match="not in this search space") as error:
            space.profile(outsider)
        assert not isinstance(error.value, RefusedSettingError)


def test_samples_cover_all_evenly() -> None:
    rng = create_generator(0, "sample")
    found = [small().sample(rng, spread) for spread in (0.1, 1, 5) for _ in range(1000)]
    counts = [found.count(c) for c in itertools.product(range(3), range(4))]
    assert sum(counts) == 3000
    assert min(counts) > 180  # 250 are expected, deviation 15
    assert all(type(index) is int for candidate in found[:5] for index in candidate)


def test_switch_moves_one_parameter() -> None:
    space, rng = small(), create_generator(0, "switch")
    found = {space.switch((1, 1), rng, 1, [0, 1]) for _ in range(200)}
    assert found == {(0, 1), (2, 1), (1, 0), (1, 2)}
    assert {space.switch((1, 1), rng, 2, [0, 1]) for _ in range(200)} == {(0, 1), (2, 1), (1, 3)}
    assert {space.switch((1, 1), rng, 2, [1]) for _ in range(50)} == {(1, 3)}
    assert space.switch((1, 1), rng, 3, [1]) is None
    assert space.switch((1, 1), rng, 1, []) is None
    assert small(parameters=(Parameter("a", ("x",)),)).switch((0,), rng, 1, [0]) is None


def test_switches_reach_everything() -> None:
    space, rng = small(), create_generator(0, "walk")
    at, seen = space.origin, set()
    for _ in range(600):
        at = space.switch(at, rng, 1, range(space.n_genes)) or at
        seen.add(at)
    assert seen == set(itertools.product(range(3), range(4)))


def test_balance_rounds_and_clips() -> None:
    assert small().balance(np.array([0.6, 1.4])) == (1, 1)
    assert small().balance(np.array([-3.0, 99.0])) == (0, 3)


def test_digest() -> None:
    same = small().digest
    assert small().digest == same
    others = {
        "of_levels": toy_space(target=0.4),
        "method": "other",
        "settings": {"per": "block"},
        "parameters": (Parameter("a", ("x", "y", "w")), stepped("b", 0, 6, 2)),
    }
    digests = {small(**{key: value}).digest for key, value in others.items()}
    assert len(digests | {same}) == 5


@pytest.mark.parametrize("names", [[], ["a", "a"], ["a", "a.b"]])
def test_bad_parameters(names: list[str]) -> None:
    with pytest.raises(ConfigError):
        small(parameters=tuple(Parameter(name, (1, 2)) for name in names))
