from __future__ import annotations

import numpy as np
import pytest
from matplotlib.axes import Axes

from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.report.plots import (
    SeedRange,
    draw_comparison,
    draw_perplexity,
    draw_profile,
    draw_scores,
    encode_png,
)
from sparsity_search.runs.record import RunRecord, ScoreTrace
from sparsity_search.testing.runs import TARGET

CURVE = ScoreTrace((1.0, 90.0, 300.0), (1, 40, 100), (0.9, 0.7, 0.5))


def ys(axes: Axes, label: str) -> list[float]:
    (line,) = [line for line in axes.get_lines() if str(line.get_label()).startswith(label)]
    return [float(y) for y in np.asarray(line.get_ydata())]


def colour(axes: Axes, label: str) -> object:
    return next(li.get_color() for li in axes.get_lines() if str(li.get_label()).startswith(label))


def test_profile_plot_shows_every_unit(record: RunRecord) -> None:
    profile = record.profiles["searched"]
    figure = draw_profile(profile, target=TARGET, title="any")
    upper, lower = figure.axes[:2]
    for role in ("q", "down"):
        wanted = [
            s for u, s in zip(record.layout, profile.sparsities, strict=True) if u.role == role
        ]
        assert ys(upper, role) == pytest.approx(wanted)
    assert ys(upper, "block mean") == pytest.approx(list(profile.grouped("block").values()))
    assert set(ys(upper, "uniform")) == {TARGET}
    shown = np.asarray(lower.get_images()[0].get_array())
    assert shown == pytest.approx(100 * (profile.sparsities.reshape(12, 7).T - TARGET))
    assert [label.get_text() for label in lower.get_yticklabels()][:2] == ["q", "k"]


def test_units_of_one_role_and_block_are_weighted_by_size() -> None:
    units = [
        Unit(name="a", block=2, role="expert", count=10, cost=3),
        Unit(name="b", block=2, role="expert", count=30),
        Unit(name="c", block=5, role="expert", count=30),
    ]
    profile = SparsityProfile(Layout(units), (10, 0, 3))
    upper, lower = draw_profile(profile, target=0.5, title="any").axes[:2]
    assert ys(upper, "expert") == [0.5, 0.1]
    shown = np.ma.filled(lower.get_images()[0].get_array().astype(float), np.nan)
    assert shown[0] == pytest.approx([0, np.nan, np.nan, -40], nan_ok=True)


def test_rounding_is_not_blown_up_to_structure(record: RunRecord) -> None:
    axes = draw_profile(record.profiles["uniform"], target=TARGET, title="any").axes[0]
    low, high = axes.get_ylim()
    assert high - low >= 0.0199
    assert low < TARGET < high


def test_comparison_plot_shows_every_profile(record: RunRecord) -> None:
    (axes,) = draw_comparison(record.profiles, target=TARGET).axes
    for name, profile in record.profiles.items():
        assert ys(axes, name) == pytest.approx(list(profile.grouped("block").values()))


def test_score_plot_in_minutes_and_evaluations() -> None:
    left, right = draw_scores(CURVE, {"uniform": 0.9, "owl": 0.8}, score="KL").axes
    assert list(left.get_lines()[0].get_xdata()) == pytest.approx([1 / 60, 1.5, 5])
    assert left.get_xlabel() == "search time (minutes)"
    assert left.get_ylabel() == "KL"
    assert list(right.get_lines()[0].get_xdata()) == [1, 40, 100]
    for axes in (left, right):
        assert ys(axes, "best so far (0.5000)") == [0.9, 0.7, 0.5]
        assert set(ys(axes, "owl (0.8000)")) == {0.8}
        assert set(ys(axes, "uniform (0.9000)")) == {0.9}


def test_a_short_search_is_shown_in_seconds() -> None:
    left, _ = draw_scores(ScoreTrace((1.5,), (1,), (0.9,)), {}, score="KL").axes
    assert left.get_xlabel() == "search time (seconds)"
    assert list(left.get_lines()[0].get_xdata()) == [1.5]


def test_a_profile_has_one_colour_in_all_figures(record: RunRecord) -> None:
    (means,) = draw_comparison(record.profiles, target=TARGET).axes
    scores = draw_scores(CURVE, {"uniform": 0.9, "owl": 0.8}, score="KL").axes[0]
    assert colour(means, "owl") == colour(scores, "owl")
    assert colour(means, "searched") == colour(scores, "best")
    assert len({colour(means, name) for name in record.profiles}) == 3


def test_equal_figures_give_equal_files(record: RunRecord) -> None:
    first, second = (encode_png(draw_comparison(record.profiles, target=TARGET)) for _ in range(2))
    assert first == second
    assert first.startswith(b"\x89PNG")
    assert b"tEXt" not in first
    assert b"tIME" not in first


def test_names_are_no_formulas(record: RunRecord) -> None:
    unit = Unit(name="a", block=0, role="$_{$r", count=10)
    profile = SparsityProfile(Layout([unit]), (5,))
    name = "a$_{$b"
    scores = draw_scores(CURVE, {name: 0.9}, score="$_{$")
    for figure in (
        draw_profile(profile, target=0.5, title=name),
        draw_comparison({name: profile}, target=0.5, title=name),
        scores,
        draw_perplexity({name: {name: [SeedRange(0.5, 3.0, 2.0, 4.0)]}}, against=name),
    ):
        assert encode_png(figure).startswith(b"\x89PNG")
    assert scores.axes[0].get_ylabel() == "$_{$"
