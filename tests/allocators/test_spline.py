from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsity_search.allocators.spline import SplineAllocator, evaluate_curve
from sparsity_search.errors import ConfigError, UnknownNameError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.registry import ALLOCATORS
from sparsity_search.testing.models import tiny_llama

NOTHING = torch.empty(0, 0)
SUBJECT = PrunableModel(tiny_llama(layers=5))
KNOTS = st.lists(st.floats(-1, 1), min_size=2, max_size=7).map(tuple)


def allocated(
    subject: PrunableModel = SUBJECT, target: float = 0.5, **given: object
) -> SparsityProfile:
    allocator = ALLOCATORS.create("spline", **given)
    return allocator.allocate(subject, NOTHING, Budget(target), Bounds.of(subject.layout))


def pchip(knots: tuple[float, ...], x: float) -> float:
    """Return the curve at ``x`` from its definition: Hermite cubics, harmonic mean slopes."""
    n = len(knots)
    steps = [knots[i + 1] - knots[i] for i in range(n - 1)]
    slopes = []
    for i in range(n):
        if n == 2:
            slope = steps[0]
        elif 0 < i < n - 1:
            a, b = steps[i - 1], steps[i]
            slope = 2 * a * b / (a + b) if a * b > 0 else 0.0
        else:
            a, b = (steps[0], steps[1]) if i == 0 else (steps[-1], steps[-2])
            slope = (3 * a - b) / 2
            if slope * a <= 0:
                slope = 0.0
            elif a * b <= 0 and abs(slope) > 3 * abs(a):
                slope = 3 * a
        slopes.append(slope)
    i = min(int(x), n - 2)
    t = x - i
    return float(
        (2 * t**3 - 3 * t**2 + 1) * knots[i]
        + (t**3 - 2 * t**2 + t) * slopes[i]
        + (-2 * t**3 + 3 * t**2) * knots[i + 1]
        + (t**3 - t**2) * slopes[i + 1]
    )


@settings(max_examples=60)
@given(knots=st.lists(st.integers(-20, 20), min_size=2, max_size=7), n_blocks=st.integers(2, 40))
def test_is_the_monotone_cubic(knots: list[int], n_blocks: int) -> None:
    values = tuple(knot / 20 for knot in knots)
    depths = [b * (len(knots) - 1) / (n_blocks - 1) for b in range(n_blocks)]
    expected = [pchip(values, depth) for depth in depths]
    np.testing.assert_allclose(evaluate_curve(values, n_blocks), expected, atol=1e-12)


@settings(max_examples=60)
@given(knots=KNOTS, n_blocks=st.integers(1, 40))
def test_stays_between_knots(knots: tuple[float, ...], n_blocks: int) -> None:
    curve = evaluate_curve(knots, n_blocks)
    assert len(curve) == n_blocks
    places = np.linspace(0, len(knots) - 1, n_blocks)
    low, high = np.floor(places).astype(int), np.ceil(places).astype(int)
    ends = np.array(knots)[[low, high]]
    assert (curve >= ends.min(axis=0) - 1e-9).all()
    assert (curve <= ends.max(axis=0) + 1e-9).all()
    assert curve[0] == pytest.approx(knots[0])
    if n_blocks > 1:
        assert curve[-1] == pytest.approx(knots[-1])


@pytest.mark.parametrize("knots", [(0.0,) * 5, (0.3, 0.3), (-1.0,) * 3])
@pytest.mark.parametrize("target", [0.1, 0.7])
def test_equal_knots_are_uniform(knots: tuple[float, ...], target: float) -> None:
    assert allocated(target=target, knots=knots) == Budget(target).uniform(SUBJECT.layout)


def test_default_is_uniform() -> None:
    assert allocated() == Budget(0.5).uniform(SUBJECT.layout)


def test_knots_are_at_the_blocks() -> None:
    # as many knots as blocks, of equal size: nothing is between, and the mean is taken away
    knots = (0.2, -0.1, 0.0, 0.1, -0.2)
    found = allocated(knots=knots).grouped("block")
    np.testing.assert_allclose(list(found.values()), 0.5 + np.array(knots), atol=1 / 512)


def test_a_straight_line() -> None:
    found = allocated(knots=(-0.2, 0.2)).grouped("block")
    np.testing.assert_allclose(list(found.values()), [0.3, 0.4, 0.5, 0.6, 0.7], atol=1 / 512)


def test_depth_is_that_of_the_model() -> None:
    subject = PrunableModel(tiny_llama(layers=5), exclude=r"layers\.[04]\.")
    found = allocated(subject, knots=(-0.2, 0.2)).grouped("block")
    assert list(found) == [1, 2, 3]
    np.testing.assert_allclose(list(found.values()), [0.4, 0.5, 0.6], atol=1 / 512)


def test_one_block() -> None:
    subject = PrunableModel(tiny_llama(layers=1))
    assert allocated(subject, knots=(0.5, -0.5)) == Budget(0.5).uniform(subject.layout)


def test_offsets_are_added() -> None:
    profile = allocated(knots=(-0.1, 0.1), offsets={"q": 0.2})
    found = {(u.block, u.role): s for u, s in zip(profile.layout, profile.sparsities, strict=True)}
    for block in range(5):
        assert found[block, "q"] - found[block, "k"] == pytest.approx(0.2, abs=1 / 256)
    assert found[4, "up"] - found[0, "up"] == pytest.approx(0.2, abs=1 / 256)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"knots": (0.1,)}, "knots must be at least two, not 1"),
        ({"knots": (0.0, 1.5)}, r"knots must lie in \[-1, 1\]"),
        ({"knots": (0.0, float("nan"))}, r"knots\.1: must be a finite number"),
        ({"offsets": {"q": -2}}, "offsets must lie"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ALLOCATORS.create("spline", **settings)


def test_unknown_role() -> None:
    with pytest.raises(UnknownNameError, match="offsets: no unit"):
        allocated(offsets={"attention": 0.1})
    assert not SplineAllocator.needs_text
    assert hash(ALLOCATORS.create("spline", knots=[0, 1])) == hash(
        SplineAllocator(knots=(0.0, 1.0))
    )
