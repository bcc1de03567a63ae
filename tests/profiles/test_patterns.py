from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsity_search.errors import ConfigError
from sparsity_search.profiles.patterns import Pattern

TEXTS = ["layer", "row", "block", "2:4", "0:4", "4:4", "*:8", "1:1"]
FAULTY = ["", "2", "2:", ":4", "2:0", "5:4", "-1:4", "2:4 ", "a:b", "2:4:8"]


@pytest.mark.parametrize("text", FAULTY)
def test_no_pattern(text: str) -> None:
    assert Pattern.parse_groups(text) is None
    with pytest.raises(ConfigError):
        Pattern.parse(text)


def test_a_number_is_no_pattern() -> None:
    with pytest.raises(ConfigError, match="must be text such as 2:4, not 124"):
        Pattern.parse(124)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_that_of_the_pattern(text: str) -> None:
    pattern = Pattern.parse(text)
    assert str(pattern) == text
    assert pattern.is_grouped == (":" in text)
    assert Pattern.parse_groups(text) == (pattern if pattern.is_grouped else None)


def test_sparsity() -> None:
    assert Pattern.parse("1:4").sparsity == 0.75
    assert Pattern.parse("*:4").sparsity is None
    assert Pattern.parse("row").sparsity is None


@given(size=st.integers(1, 16), data=st.data())
def test_zeros_are_what_groups_do_not_keep(size: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(0, size))
    pattern = Pattern.parse(f"{keep}:{size}")
    assert pattern == Pattern("group", size, keep)
    number = data.draw(st.integers(1, 9))
    mask = ([1] * keep + [0] * (size - keep)) * number
    assert pattern.fits(len(mask))
    assert pattern.counts(len(mask)) == [mask.count(0)]
    assert pattern.removed_in_group(mask.count(0), len(mask)) == size - keep
    pattern.check((1, len(mask)), pattern.counts(len(mask)))


def test_any_number() -> None:
    pattern = Pattern.parse("*:4")
    assert pattern.counts(8) == [2, 4, 6, 8]
    assert not pattern.fits(6)
    pattern.check((3, 8), [0, 6, 12, 18, 24])


@pytest.mark.parametrize(
    ("text", "shape", "count"),
    [("2:4", (3, 8), 6), ("2:4", (3, 8), 11), ("*:4", (3, 8), 7), ("*:5", (3, 8), 0)],
)
def test_counts_that_groups_cannot_have(text: str, shape: tuple[int, int], count: int) -> None:
    with pytest.raises(ConfigError):
        Pattern.parse(text).check(shape, [count])
    Pattern.parse("row").check(shape, [count])
