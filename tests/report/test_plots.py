from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.axes import Axes

from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.report.plots import (
    draw_comparison,
    draw_perplexity,
    draw_profile,
    draw_scores,
    draw_steps,
    encode_png,
)
from sparsity_search.report.seed_range import SeedRange
from sparsity_search.runs.record import RunRecord, ScoreTrace
from sparsity_search.testing.runs import TARGET, build_run_layout, build_run_steps

CURVE = ScoreTrace((1.0, 90.0, 300.0), (1, 40, 100), (512, 9000, 30000), (0.9, 0.7, 0.5))


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


def test_score_plot_in_minutes_and_tokens() -> None:
    left, right = draw_scores(CURVE, {"uniform": 0.9, "owl": 0.8}, score="KL").axes
    assert list(left.get_lines()[0].get_xdata()) == pytest.approx([1 / 60, 1.5, 5])
    assert left.get_xlabel() == "search time (minutes)"
    assert left.get_ylabel() == "KL"
    assert list(right.get_lines()[0].get_xdata()) == [512, 9000, 30000]
    for axes in (left, right):
        assert ys(axes, "best so far (0.5000)") == [0.9, 0.7, 0.5]
        assert set(ys(axes, "owl (0.8000)")) == {0.8}
        assert set(ys(axes, "uniform (0.9000)")) == {0.9}


def test_a_short_search_is_shown_in_seconds() -> None:
    left, _ = draw_scores(ScoreTrace((1.5,), (1,), (512,), (0.9,)), {}, score="KL").axes
    assert left.get_xlabel() == "search time (seconds)"
    assert list(left.get_lines()[0].get_xdata()) == [1.5]


def test_steps_plot_shows_every_candidate_and_the_best_so_far() -> None:
    steps = build_run_steps(build_run_layout(), 120.0, "alps")
    (axes,) = draw_steps(steps, score="KL").axes
    assert axes.get_xlabel() == "time of the job (minutes)"
    assert ys(axes, "best so far") == [0.96, 0.84, 0.576, 0.288, 0.288]
    assert set(ys(axes, "uniform")) == {0.96}
    points = [line for line in axes.get_lines() if line.get_linestyle() == "None"]
    assert [float(p.get_xdata()[0]) for p in points] == pytest.approx(
        [seconds / 60 for seconds in (40, 50, 180, 190, 200)]
    )
    assert [float(p.get_ydata()[0]) for p in points] == [0.96, 0.84, 0.576, 0.288, 0.48]
    assert [p.get_marker() for p in points] == ["o", "o", "o", "D", "D"]
    assert points[2].get_color() == points[3].get_color() != points[4].get_color()
    assert [text.get_text() for text in axes.texts] == [step.name for step in steps]


def test_steps_plot_leaves_out_broken_candidates() -> None:
    first, second, *_ = build_run_steps(build_run_layout(), 20.0)
    broken = replace(first, row={**first.row, "score": None})
    (axes,) = draw_steps([broken, second], score="KL").axes
    assert axes.get_xlabel() == "time of the job (seconds)"
    assert [text.get_text() for text in axes.texts] == ["owl"]
    assert ys(axes, "best so far") == [0.84, 0.84]
    assert "uniform" not in axes.get_legend_handles_labels()[1]


def test_a_profile_has_one_colour_in_all_figures(record: RunRecord) -> None:
    (means,) = draw_comparison(record.profiles, target=TARGET).axes
    scores = draw_scores(CURVE, {"uniform": 0.9, "owl": 0.8}, score="KL").axes[0]
    steps = draw_steps(record.steps, score="KL").axes[0]
    for text in steps.texts:
        assert text.get_color() == colour(means, text.get_text())
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
    steps = [replace(step, name=name) for step in record.steps]
    for figure in (
        draw_profile(profile, target=0.5, title=name),
        draw_comparison({name: profile}, target=0.5, title=name),
        scores,
        draw_steps(steps, score="$_{$"),
        draw_perplexity({name: {name: [SeedRange(0.5, 3.0, 2.0, 4.0)]}}, against=name),
    ):
        assert encode_png(figure).startswith(b"\x89PNG")
    assert scores.axes[0].get_ylabel() == "$_{$"
