from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsity_search.errors import ProfileError
from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.profiles.profile import SparsityProfile, from_counts
from sparsity_search.testing.problems import toy_layout

LAYOUT = Layout(
    [
        Unit(name="layers.0.q", block=0, role="q", count=10),
        Unit(name="layers.0.up", block=0, role="up", count=30),
        Unit(name="layers.1.q", block=1, role="q", count=5, cost=4),
    ]
)
PROFILE = SparsityProfile(LAYOUT, (5, 10, 2))


def read(value: Any) -> SparsityProfile:
    return SparsityProfile.from_json(LAYOUT, json.loads(json.dumps(value)))


def test_numbers() -> None:
    assert PROFILE.n_removed == 5 + 10 + 2 * 4
    assert PROFILE.sparsity == 23 / 60
    np.testing.assert_allclose(PROFILE.sparsities, [0.5, 1 / 3, 0.4])


def test_groups_are_weighted_by_size() -> None:
    assert PROFILE.grouped("block") == {0: 15 / 40, 1: 8 / 20}
    assert PROFILE.grouped("role") == {"q": 13 / 30, "up": 10 / 30}


def test_is_a_value() -> None:
    twin = from_counts(LAYOUT, np.array([5, 10, 2]))
    assert twin == PROFILE
    assert hash(twin) == hash(PROFILE)
    assert twin.digest == PROFILE.digest
    assert all(type(count) is int for count in twin.removed)
    assert from_counts(LAYOUT, [5, 10, 3]).digest != PROFILE.digest


@pytest.mark.parametrize("removed", [(5, 10), (-1, 10, 2), (5, 31, 2), (5, 10, 6)])
def test_counts_fit_the_layout(removed: tuple[int, ...]) -> None:
    with pytest.raises(ProfileError, match=r"2 counts for 3 units|cannot be removed"):
        SparsityProfile(LAYOUT, removed)


def test_json_round_trip() -> None:
    assert read(PROFILE.to_json()) == PROFILE
    for removed in [(0, 0, 0), (10, 30, 5)]:
        profile = from_counts(LAYOUT, removed)
        assert read(profile.to_json()) == profile


def test_a_file_is_read_back_with_its_own_units(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    PROFILE.save(path, {"model": "mine"})
    assert json.loads(path.read_text())["model"] == "mine"
    assert SparsityProfile.load(path) == PROFILE
    assert SparsityProfile.load(path, LAYOUT).layout is LAYOUT
    with pytest.raises(ProfileError):
        SparsityProfile.load(path, toy_layout())
    path.write_text(path.read_text().replace('"removed": 5', '"removed": 6'))
    with pytest.raises(ProfileError, match="damaged"):
        SparsityProfile.load(path)


def test_json_totals() -> None:
    value = PROFILE.to_json()
    assert (value["removed"], value["weights"]) == (23, 60)
    assert value["units"]["layers.1.q"] == {
        "block": 1, "role": "q", "removed": 2, "of": 5, "weights_each": 4, "sparsity": 0.4,
    }  # fmt: skip


def _drop(*path: str) -> Callable[[Any], object]:
    def change(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        del value[path[-1]]

    return change


def _set(new: Any, *path: str) -> Callable[[Any], object]:
    def change(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = new

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop("format"), "not a sparsity profile"),
        (_drop("units"), "not a sparsity profile"),
        (_drop("units", "layers.0.q", "removed"), "not a sparsity profile"),
        (_set([], "units"), "not a sparsity profile"),
        (_set([3], "units", "layers.0.q"), "not a sparsity profile"),
        (_set(2, "format"), "format 2"),
        (_set(6, "units", "layers.0.q", "removed"), "do not add up"),
        (_set(24, "removed"), "do not add up"),
        (_set(11, "units", "layers.0.q", "removed"), "cannot be removed"),
        (_set(-5, "units", "layers.0.q", "removed"), r"layers\.0\.q\.removed: .*not -5"),
        (_set(5.0, "units", "layers.0.q", "removed"), "integer, not 5.0"),
        (_set(True, "units", "layers.0.q", "removed"), "integer, not True"),
        (_set("5", "units", "layers.0.q", "removed"), "integer, not '5'"),
        (_set(None, "units", "layers.0.q", "removed"), "integer, not None"),
        (_set(True, "format"), "format True"),
        (_set(5, "removes"), "removes: .*string, not 5"),
        (_set(0.4, "sparsity"), r"do not add up to its sparsity 0\.4"),
        (_set(0.6, "units", "layers.0.q", "sparsity"), r"layers\.0\.q has sparsity 0\.5"),
        (_set(3, "units", "layers.0.q", "weights_each"), "weights in each item here, 3 there"),
        (_set(1, "units", "layers.0.q", "block"), "has 0 as its block here, 1 there"),
        (_set(12, "units", "layers.0.q", "of"), "has 10 items here, 12 there"),
        (_drop("units", "layers.0.up"), "lacks layers.0.up"),
        (_set({"removed": 0, "of": 1}, "units", "new"), "it has new"),
    ],
)
def test_corrupt_json(change: Callable[[Any], object], message: str) -> None:
    value = copy.deepcopy(PROFILE.to_json())
    change(value)
    with pytest.raises(ProfileError, match=message):
        read(value)


GROUPS = toy_layout(24, 80, 40)
PATTERNED = SparsityProfile(GROUPS, (12, 0, 20), ("2:4", "", "4:8"))


def test_patterns_are_part_of_the_value() -> None:
    plain = from_counts(GROUPS, [12, 0, 20])
    other = from_counts(GROUPS, [12, 0, 20], ["4:8", "", "2:4"])
    assert len({plain, PATTERNED, other}) == 3
    assert len({plain.digest, PATTERNED.digest, other.digest}) == 3
    assert PATTERNED.states == ((12, "2:4"), (0, ""), (20, "4:8"))
    assert plain.states == ((12, ""), (0, ""), (20, ""))
    assert PATTERNED.n_removed == plain.n_removed
    nothing = from_counts(GROUPS, [12, 0, 20], ["", "", ""])
    assert (nothing, nothing.digest) == (plain, plain.digest)


def test_patterns_in_json() -> None:
    value = json.loads(json.dumps(PATTERNED.to_json()))
    assert [unit.get("pattern") for unit in value["units"].values()] == ["2:4", None, "4:8"]
    assert SparsityProfile.from_json(GROUPS, value) == PATTERNED
    plain = from_counts(GROUPS, [12, 0, 20]).to_json()
    assert not any("pattern" in unit for unit in plain["units"].values())
    value["units"]["layers.0.q"]["pattern"] = 24
    with pytest.raises(ProfileError, match=r"pattern: .*string, not 24"):
        SparsityProfile.from_json(GROUPS, value)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (("2:4",), "1 patterns for 3 units"),
        (("2:4", "", "4:8", ""), "4 patterns for 3 units"),
        (("1:4", "", ""), "layers.0.q: 12 of 24 removed is not 1:4"),
        (("2:4", "2:4", ""), "layers.0.k: 0 of 80 removed is not 2:4"),
        (("", "", "3:6"), "layers.0.up: 40 items of 1 weights cannot be '3:6'"),
        (("row", "", ""), "cannot be 'row'"),
        (("*:4", "", ""), "cannot be"),
        (("4:4", "", ""), "cannot be"),
        (("0:0", "", ""), "cannot be"),
    ],
)
def test_patterns_fit_the_counts(patterns: tuple[str, ...], message: str) -> None:
    with pytest.raises(ProfileError, match=re.escape(message)):
        SparsityProfile(GROUPS, (12, 0, 20), patterns)


@pytest.mark.parametrize("value", [None, 3, "x", [], {}, [1, 2]])
def test_not_a_profile(value: Any) -> None:
    with pytest.raises(ProfileError, match="not a sparsity profile"):
        read(value)


def test_another_model() -> None:
    with pytest.raises(ProfileError, match=r"another model.*2 units missing, 1 unknown"):
        read(from_counts(toy_layout(10, 30), [1, 2]).to_json())
