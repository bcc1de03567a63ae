from __future__ import annotations

from typing import Any

import pytest

from sparsity_search.allocators.bases.offsets import as_offsets, role_offsets
from sparsity_search.errors import ConfigError, UnknownNameError
from sparsity_search.testing.problems import toy_layout

LAYOUT = toy_layout(1, 1, 1, 1, 1)  # q, k, up, down, q


def test_pairs_are_sorted_numbers() -> None:
    expected = (("k", -1.0), ("q", 0.5))
    assert as_offsets({"q": 0.5, "k": -1}) == expected
    assert as_offsets((("q", 0.5), ("k", -1))) == expected
    assert as_offsets(expected) == expected
    assert as_offsets({}) == as_offsets(()) == ()


@pytest.mark.parametrize(
    "offsets",
    [{"q": 1.1}, {"q": float("nan")}, {"q": "much"}, {"q": None}, (("q", 0), ("q", 1)), (1,),
     {1: 0.5}],
)  # fmt: skip
def test_illegal(offsets: Any) -> None:
    with pytest.raises(ConfigError, match="offsets must"):
        as_offsets(offsets)


def test_of_units() -> None:
    assert role_offsets(LAYOUT, {"q": 0.5, "down": -0.25}).tolist() == [0.5, 0, 0, -0.25, 0.5]
    assert role_offsets(LAYOUT, ()).tolist() == [0.0] * 5


def test_unknown_role() -> None:
    with pytest.raises(UnknownNameError, match=r"offsets: .*'donw': did you mean 'down'"):
        role_offsets(LAYOUT, {"donw": 0.1})
