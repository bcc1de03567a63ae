from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsity_search.allocators.bases.rescale import check_spread, rescale_values
from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.layout import Layout, Unit

VALUES = st.lists(st.integers(-1000, 1000), min_size=1, max_size=9)
SPREADS = st.floats(0.01, 0.9)


def test_by_hand() -> None:
    assert rescale_values([10, 1, 1, 4], 0.08) == pytest.approx([0.16, 0, 0, 0.16 / 3])
    assert rescale_values([-3.0, 1.0], 0.25).tolist() == [0.0, 0.5]


@given(VALUES, SPREADS)
def test_range_and_order(values: list[int], spread: float) -> None:
    found = rescale_values(values, spread)
    assert found.min() == 0
    assert found.max() == pytest.approx(2 * spread if len(set(values)) > 1 else 0)
    order = np.argsort(values, kind="stable")
    assert (np.diff(found[order]) >= 0).all()


@given(VALUES, SPREADS, st.sampled_from([0.25, 1.0, 64.0]), st.integers(-50, 50))
def test_positive_affine_maps_change_nothing(
    values: list[int], spread: float, a: float, c: int
) -> None:
    found = rescale_values(a * np.array(values, dtype=float) + c, spread)
    np.testing.assert_allclose(found, rescale_values(values, spread), atol=1e-12)


@given(VALUES, SPREADS)
def test_negative_spread_turns_the_order_round(values: list[int], spread: float) -> None:
    np.testing.assert_array_equal(rescale_values(values, -spread), -rescale_values(values, spread))


@pytest.mark.parametrize("value", [0.0, 7.5, -1e300])
def test_equal_values_give_zeros(value: float) -> None:
    assert rescale_values([value] * 3, 0.2).tolist() == [0, 0, 0]


def test_huge_range() -> None:
    assert rescale_values([-1.7e308, 1.7e308, 0], 0.3) == pytest.approx([0, 0.6, 0.3])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(bad: float) -> None:
    with pytest.raises(NumericalError, match="not finite"):
        rescale_values([1.0, bad], 0.1)


@pytest.mark.parametrize("target", [0.3, 0.7])
def test_projection_centres_by_parameters(target: float) -> None:
    # the closed form s_u = S + r_u - Σ n r / Σ n, for units of unequal size
    sizes = np.array([400_000, 100_000, 1_500_000])
    layout = Layout(
        [Unit(name=str(i), block=i, role="q", count=int(n)) for i, n in enumerate(sizes)]
    )
    moved = rescale_values([1.0, 5.0, 2.0], 0.1)
    found = Budget(target).project(layout, target + moved, Bounds.of(layout))
    expected = target + moved - sizes @ moved / sizes.sum()
    np.testing.assert_allclose(found.sparsities, expected, atol=2 / sizes.min())
    assert abs(moved.mean() - sizes @ moved / sizes.sum()) > 0.02  # a plain mean would not do


@pytest.mark.parametrize("spread", [-0.1, 1.0, float("nan")])
def test_check_spread(spread: float) -> None:
    check_spread(0)
    check_spread(0.99)
    with pytest.raises(ConfigError, match=r"spread must lie in \[0, 1\)"):
        check_spread(spread)
