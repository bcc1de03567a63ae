from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsity_search.errors import ProfileError
from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.profiles.scores import LossCurve, Scores, build_count_tables


def layout_of(*counts: int, zeros: int = 0) -> Layout:
    return Layout(
        [
            Unit(name=f"{i}", block=i, role="q", count=count, zeros=zeros)
            for i, count in enumerate(counts)
        ]
    )


def scores_of(**changes: object) -> Scores:
    given_ = {
        "layout": layout_of(10, 20),
        "counts": (np.array([2, 5]), np.array([10, 15, 20])),
        "losses": (np.array([0.1, 0.4]), np.array([1.0, 2.0, 3.0])),
        **changes,
    }
    return Scores(**given_)  # type: ignore[arg-type]


@settings(max_examples=50)
@given(
    losses=st.lists(st.floats(0, 1e6), min_size=1, max_size=6),
    zeros=st.integers(0, 3),
    data=st.data(),
)
def test_a_curve_goes_through_what_was_measured(
    losses: list[float], zeros: int, data: st.DataObject
) -> None:
    n = len(losses)
    counts = np.array(
        sorted(data.draw(st.sets(st.integers(zeros + 1, 60), min_size=n, max_size=n)))
    )
    curve = LossCurve.through(zeros, counts, np.array(losses))
    np.testing.assert_allclose(curve(counts), losses, rtol=1e-9, atol=1e-12)
    assert (curve(np.arange(zeros + 1)) == 0).all()
    everywhere = curve(np.arange(70))
    assert np.isfinite(everywhere).all()
    assert (everywhere >= 0).all()


@settings(max_examples=50)
@given(steps=st.lists(st.floats(0, 10), min_size=1, max_size=6))
def test_rising_losses_give_a_rising_curve(steps: list[float]) -> None:
    counts = 7 * np.arange(1, len(steps) + 1)
    curve = LossCurve.through(0, counts, np.cumsum(steps))
    assert (np.diff(curve(np.linspace(0, 60, 200))) >= -1e-9).all()


def test_a_curve_is_straight_in_the_root() -> None:
    counts = np.array([10, 20, 40])
    curve = LossCurve.through(0, counts, 0.03 * counts**2)
    at = np.array([0.0, 0.5, 7.0, 33.3, 40.0, 47.0])  # the last lies beyond what was measured
    np.testing.assert_allclose(curve(at), 0.03 * at**2)


def test_zeros_cost_nothing() -> None:
    curve = LossCurve.through(6, np.array([4, 6, 12]), np.array([9.0, 8.0, 4.0]))
    assert curve(np.array([0, 4, 6])).tolist() == [0, 0, 0]
    assert curve(np.array([9, 12])).tolist() == [1, 4]
    full = LossCurve.through(6, np.array([6]), np.array([1.0]))
    assert full(np.arange(7)).tolist() == [0] * 7


def test_the_loss_of_a_profile_is_the_sum_over_units() -> None:
    scores = scores_of()
    assert scores.loss(SparsityProfile(scores.layout, (5, 15))) == pytest.approx(2.4)
    assert scores.loss(SparsityProfile(scores.layout, (0, 0))) == 0
    between = scores.loss(SparsityProfile(scores.layout, (3, 0)))
    assert 0.1 < between < 0.4


def test_json_and_back_is_the_same() -> None:
    losses = (np.array([1 / 3, 0.4]), np.array([1e-17, 2.0, 3e9]))
    scores = scores_of(losses=losses, facts={"model": {"name": "tiny"}, "format": 99})
    value = json.loads(json.dumps(scores.to_json()))
    again = Scores.from_json(value, np.zeros((5, 5), np.float32))
    assert again.layout == scores.layout
    assert again.facts == {"model": {"name": "tiny"}}
    assert again.pairs is not None
    for mine, theirs in ((scores.counts, again.counts), (scores.losses, again.losses)):
        for a, b in zip(mine, theirs, strict=True):
            assert a.tolist() == b.tolist()
            assert a.dtype == b.dtype


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"counts": (np.array([2, 5]),)}, "all 2 units"),
        ({"counts": (np.array([5, 2]), np.array([10, 15, 20]))}, "0: .* increasing"),
        ({"counts": (np.array([5, 11]), np.array([10, 15, 20]))}, "0: .* increasing"),
        ({"counts": (np.array([-1, 2]), np.array([10, 15, 20]))}, "0: .* increasing"),
        ({"counts": (np.array([2]), np.array([10, 15, 20]))}, "one loss each"),
        ({"losses": (np.array([0.1, -0.4]), np.ones(3))}, "not negative"),
        ({"losses": (np.array([0.1, np.nan]), np.ones(3))}, "finite"),
        ({"pairs": np.zeros((4, 4))}, "5 by 5"),
        ({"pairs": np.full((5, 5), np.nan)}, "finite"),
        ({"pairs": np.ones((5, 5), bool)}, "floating point"),
        ({"pairs": np.arange(25.0).reshape(5, 5)}, "symmetric"),
        ({"counts": (np.array([], int), np.array([1]))}, "increasing"),
    ],
)
def test_tables_that_do_not_fit_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ProfileError, match=words):
        scores_of(**changes)


@pytest.mark.parametrize("broken", ["layout", "units", "format"])
def test_what_is_no_table_is_refused(broken: str) -> None:
    value = scores_of().to_json()
    del value[broken]
    with pytest.raises(ProfileError, match="not a table of scores"):
        Scores.from_json(value)


def test_other_formats_are_refused() -> None:
    with pytest.raises(ProfileError, match="format 2"):
        Scores.from_json({**scores_of().to_json(), "format": 2})
    for value in (None, [], "text", {"format": 1, "layout": [], "units": []}):
        with pytest.raises(ProfileError):
            Scores.from_json(value)
    value = scores_of().to_json()
    value["units"] = [1, 2]
    with pytest.raises(ProfileError, match="not a table"):
        Scores.from_json(value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("counts", [1.7, 5], r"counts\.0: must be .*integer"),
        ("counts", [1, 10**16], r"counts\.1"),
        ("counts", [True, 5], r"counts\.0"),
        ("losses", [[0.1], [0.2]], r"losses\.0: must be .*number"),
        ("losses", ["0.1", 0.2], r"losses\.0"),
        ("losses", None, "losses: must be .*list"),
    ],
)
def test_values_of_the_wrong_type_are_named(key: str, value: object, words: str) -> None:
    stored = scores_of().to_json()
    first = next(iter(stored["units"]))
    stored["units"][first][key] = value
    with pytest.raises(ProfileError, match=f"not a table of scores: units.*{words}"):
        Scores.from_json(stored)


@pytest.mark.parametrize(("key", "value"), [("cost", 0), ("zeros", -1), ("count", "5")])
def test_layouts_that_cannot_be_are_refused(key: str, value: object) -> None:
    stored = scores_of().to_json()
    stored["layout"][0][key] = value
    with pytest.raises(ProfileError, match=f"not a list of units: {key}"):
        Scores.from_json(stored)


def test_scores_of_other_units_than_the_layouts_are_refused() -> None:
    stored = scores_of().to_json()
    stored["layout"].pop()
    with pytest.raises(ProfileError, match="its layout and its losses differ"):
        Scores.from_json(stored)


def test_tables_round_and_lie_beyond_the_zeros() -> None:
    layout = layout_of(10, 3, 1, zeros=1)
    assert build_count_tables(layout, [0.06, 0.14, 0.5, 0.5, 1.0]) == ((5, 10), (2, 3), (1,))
    assert build_count_tables(layout_of(7), [1.0, 0.5]) == ((4, 7),)
