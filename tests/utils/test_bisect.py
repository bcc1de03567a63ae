from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsity_search.utils.bisect import bisect


@given(st.floats(-1e6, 1e6), st.floats(-3, 3))
def test_the_least_float_that_reaches_the_target(target: float, slope: float) -> None:
    def rising(x: float) -> float:
        return x**3 + (2 + slope) * x

    low, high = -200.0, 200.0
    at = bisect(rising, target, low, high)
    assert rising(at) >= target
    assert rising(math.nextafter(at, low)) < target


def test_a_jump() -> None:
    assert bisect(lambda x: float(x >= 0.3), 0.5, 0.0, 1.0) == 0.3


@pytest.mark.parametrize(("target", "end"), [(-5.0, 2.0), (2.0, 2.0), (9.0, 4.0)])
def test_a_target_beyond_an_end_gives_that_end(target: float, end: float) -> None:
    assert bisect(lambda x: x, target, 2.0, 4.0) == end
