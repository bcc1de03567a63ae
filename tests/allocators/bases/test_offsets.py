from __future__ import annotations

from typing import Any

import pytest

from sparsity_search.allocators.bases.offsets import get_unit_offsets, parse_offsets
from sparsity_search.errors import ConfigError, UnknownNameError
from sparsity_search.testing.problems import toy_layout

LAYOUT = toy_layout(1, 1, 1, 1, 1)  # q, k, up, down, q


def test_pairs_are_sorted_numbers() -> None:
    expected = (("k", -1.0), ("q", 0.5))
    assert parse_offsets({"q": 0.5, "k": -1}) == expected
    assert parse_offsets((("q", 0.5), ("k", -1))) == expected
    assert parse_offsets(expected) == expected
    assert parse_offsets({}) == parse_offsets(()) == ()


@pytest.mark.parametrize(
    "offsets",
    [{"q": 1.1}, {"q": float("nan")}, {"q": "much"}, {"q": None}, (("q", 0), ("q", 1)), (1,),
     {1: 0.5}],
)  # fmt: skip
def test_illegal(offsets: Any) -> None:
    with pytest.raises(ConfigError, match="offsets must"):
        parse_offsets(offsets)


def test_of_units() -> None:
    assert get_unit_offsets(LAYOUT, {"q": 0.5, "down": -0.25}).tolist() == [0.5, 0, 0, -0.25, 0.5]
    assert get_unit_offsets(LAYOUT, ()).tolist() == [0.0] * 5


def test_unknown_role() -> None:
    with pytest.raises(UnknownNameError, match=r"offsets: .*'donw': did you mean 'down'"):
        get_unit_offsets(LAYOUT, {"donw": 0.1})
