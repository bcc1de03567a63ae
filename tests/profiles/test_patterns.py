from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsity_search.profiles.patterns import Groups


@pytest.mark.parametrize(
    "text", ["", "2", "2:", ":4", "2:0", "5:4", "-1:4", "2:4 ", "a:b", "2:4:8"]
)
def test_no_pattern(text: str) -> None:
    assert Groups.parse(text) is None


@given(size=st.integers(1, 16), data=st.data())
def test_zeros_are_what_groups_do_not_keep(size: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(0, size))
    found = Groups.parse(f"{keep}:{size}")
    assert found == Groups(size, keep)
    number = data.draw(st.integers(1, 9))
    mask = ([1] * keep + [0] * (size - keep)) * number
    assert found.fits(len(mask))
    assert found.zeros(len(mask), keep) == mask.count(0)
    assert list(found.kept) == [keep]


def test_any_number() -> None:
    found = Groups.parse("*:4")
    assert found is not None
    assert list(found.kept) == [0, 1, 2, 3]
    assert not found.fits(6)
