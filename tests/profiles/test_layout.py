from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from sparsity_search.errors import ProfileError, UnknownNameError
from sparsity_search.profiles.layout import Layout, Unit

UNITS = [
    Unit(name="layers.0.q", block=0, role="q", count=10, zeros=2),
    Unit(name="layers.0.up", block=0, role="up", count=30),
    Unit(name="layers.2.heads", block=2, role="head", count=4, cost=25),
]
LAYOUT = Layout(UNITS)


def test_numbers() -> None:
    assert LAYOUT.counts.tolist() == [10, 30, 4]
    assert LAYOUT.costs.tolist() == [1, 1, 25]
    assert LAYOUT.zeros.tolist() == [2, 0, 0]
    assert [unit.size for unit in LAYOUT] == [10, 30, 100]
    assert (LAYOUT.n_weights, LAYOUT.n_blocks, len(LAYOUT)) == (140, 2, 3)


def test_is_a_sequence() -> None:
    assert LAYOUT[1] is UNITS[1]
    assert LAYOUT[1:] == tuple(UNITS[1:])
    assert UNITS[2] in LAYOUT
    assert repr(LAYOUT) == "Layout(3 units, 140 weights, 2 blocks)"


def test_position() -> None:
    assert [LAYOUT.position(unit.name) for unit in UNITS] == [0, 1, 2]
    with pytest.raises(UnknownNameError, match=r"did you mean 'layers.0.up'"):
        LAYOUT.position("layers.0.ap")


@pytest.mark.parametrize("units", [[], [UNITS[0], replace(UNITS[1], name=UNITS[0].name)]])
def test_names_are_distinct_and_there_is_one(units: list[Unit]) -> None:
    with pytest.raises(ProfileError, match="at least one unit, and distinct unit names"):
        Layout(units)


def test_json_round_trip() -> None:
    read = Layout.from_json(json.loads(json.dumps(LAYOUT.to_json())))
    assert read == LAYOUT
    assert hash(read) == hash(LAYOUT)
    assert read.digest == LAYOUT.digest


@pytest.mark.parametrize(
    "value",
    [
        *(None, 3, [1], [{"name": "a"}], [{"size": 3}]),
        *([{**asdict(UNITS[0]), "cost": 0}], [{**asdict(UNITS[0]), "zeros": -1}]),
    ],
)
def test_corrupt_json(value: object) -> None:
    with pytest.raises(ProfileError, match="not a list of units"):
        Layout.from_json(value)


@pytest.mark.parametrize(
    "change",
    [{"name": "x"}, {"block": 1}, {"role": "k"}, {"count": 11}, {"cost": 2}, {"zeros": 3}],
)
def test_digest_depends_on_everything(change: dict[str, object]) -> None:
    other = Layout([replace(UNITS[0], **change), *UNITS[1:]])
    assert other.digest != LAYOUT.digest
    assert other != LAYOUT
    assert Layout(UNITS[::-1]).digest != LAYOUT.digest
