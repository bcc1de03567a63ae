"""The figures of a report. No global state of matplotlib is read from or left behind."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogFormatter, MaxNLocator

from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.report.seed_range import SeedRange
from sparsity_search.report.table import format_number
from sparsity_search.runs.gains import trace_best
from sparsity_search.runs.record import ScoreTrace
from sparsity_search.runs.trail import StepRecord

#: Okabe and Ito's palette (without yellow, too pale on white) and two more that keep apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#999933")
MARKERS = "osD^vPX*<>"
LINES = ("-", "-.", ":")
INK, GREY, GRID = "#222222", "#767676", "#E4E4E4"
DPI = 160


def draw_profile(
    profile: SparsityProfile, *, target: float, title: str = "Sparsity over depth"
) -> Figure:
    """Draw sparsity over depth: one line for each role, and a map of differences from uniform.

    Args:
        profile: The profile to draw.
        target: The uniform level.
        title: Title of the figure.
    """
    grid = _compute_grid(profile)
    figure = _create_figure(9.0, 4.4 + 0.26 * len(grid), title)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.4, 0.6 + 0.26 * len(grid)))
    means = profile.grouped("block")
    upper.plot(list(means), list(means.values()), color=INK, lw=2.8, label="block mean", zorder=5)
    _draw_target(upper, target)
    for style, (role, values) in zip(_list_styles(len(grid)), grid.items(), strict=True):
        upper.plot(list(values), list(values.values()), label=role, **style)
    _style_axes(upper, ylabel="sparsity")
    _show_percent(upper)
    _draw_legend(upper)
    _draw_map(figure, lower, grid, target)
    return figure


def draw_comparison(
    profiles: Mapping[str, SparsityProfile],
    *,
    target: float,
    title: str = "Mean sparsity of each block, weighted by size",
) -> Figure:
    """Draw the mean sparsity of each block under each profile."""
    figure = _create_figure(9.0, _choose_height(profiles), title)
    axes = figure.subplots()
    for name, profile in reversed(list(profiles.items())):
        means = profile.grouped("block")
        style = _choose_style(name, profiles)
        marker = "" if name == "uniform" else "o"
        axes.plot(
            list(means), list(means.values()), marker=marker, markersize=4, label=name, **style
        )
    if "uniform" not in profiles:
        _draw_target(axes, target)
    _style_axes(axes, ylabel="sparsity", xlabel="block")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _show_percent(axes)
    _draw_legend(axes)
    return figure


def draw_scores(
    trace: ScoreTrace, references: Mapping[str, float], *, score: str, fresh: bool = False
) -> Figure:
    """Draw the best score against time and against tokens.

    Args:
        trace: At least one point.
        references: Scores of other profiles on the same tokens.
        score: Name of the score, for the axis.
        fresh: The points are winners of rounds, each on its own tokens.
    """
    title = "Winner of each round (fresh tokens each)" if fresh else "Best score so far"
    figure = _create_figure(9.0, 3.7, f"{title}, at the top rung of the search")
    left, right = figure.subplots(1, 2, sharey=True)
    scale, unit = _choose_unit(trace.elapsed[-1])
    times = [elapsed / scale for elapsed in trace.elapsed]
    for axes, xs in ((left, times), (right, trace.tokens)):
        _draw_steps(axes, xs, trace.scores, fresh)
        for name, value in references.items():
            style = {**_choose_style(name, references), "lw": 1.4, "ls": "--"}
            axes.axhline(value, label=f"{name} ({format_number(value)})", **style)
        axes.set_xlim(left=0)
        axes.margins(y=0.08)
    _style_axes(left, ylabel=score, xlabel=f"search time ({unit})")
    _style_axes(right, xlabel="tokens measured at all rungs")
    right.xaxis.set_major_locator(MaxNLocator(nbins=5))
    if not fresh:
        _draw_legend(right)
    return figure


def draw_steps(steps: Sequence[StepRecord], *, score: str) -> Figure:
    """Draw the candidates of a search over the time of the whole job, and the best score so far.

    Args:
        steps: In their order, uniform first; at least one has a finite score.
        score: Name of the score, for the axis.
    """
    figure = _create_figure(9.0, 4.4, "Best score so far, over the time of the whole job")
    axes = figure.subplots()
    shown = [(step, step.score) for step in steps if step.score is not None]
    end = max(step.elapsed for step, _ in shown)
    scale, unit = _choose_unit(end)
    names = {step.profile: step.name for step in reversed(steps)}
    colours = {name: _choose_style(name, names.values())["color"] for name in names.values()}
    trace = trace_best(steps)
    if trace.scores:
        times = [elapsed / scale for elapsed in (*trace.elapsed, end)]
        scores = (*trace.scores, trace.scores[-1])
        axes.plot(times, scores, color=INK, lw=1.8, drawstyle="steps-post", label="best so far")
    for step, value in shown:
        marker = "o" if step.pruner == steps[0].pruner else "D"
        point, colour = (step.elapsed / scale, value), colours[names[step.profile]]
        axes.plot(*point, color=colour, marker=marker, ms=6, ls="none", zorder=5)
        _label_point(axes, step.name, point, colour)
    if steps[0].score is not None:
        axes.axhline(steps[0].score, label="uniform", **_choose_style("uniform", ()))
    axes.set_xlim(0, 1.12 * end / scale)  # room for the last name
    axes.margins(y=0.12)
    _style_axes(axes, ylabel=score, xlabel=f"time of the job ({unit})")
    _draw_legend(axes)
    return figure


def draw_perplexity(
    curves: Mapping[str, Mapping[str, Sequence[SeedRange]]], against: str = "sparsity"
) -> Figure:
    """Draw perplexity against sparsity: one panel a pruner, one line an allocator.

    Args:
        curves: Points by pruner and allocator; whiskers show the range over seeds.
        against: Name of the horizontal axis.
    """
    names = list(dict.fromkeys(name for lines in curves.values() for name in lines))
    figure = _create_figure(
        2.0 + 4.5 * len(curves), _choose_height(names), f"Perplexity against {against}"
    )
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axes, (pruner, lines) in zip(panels, curves.items(), strict=True):
        for name, points in lines.items():
            xs = [100 * point.sparsity for point in points]
            ys = np.array([point.mean for point in points])
            spread = np.array([(p.mean - p.low, p.high - p.mean) for p in points]).T
            style = {**_choose_style(name, names), "lw": 1.4, "marker": "o", "ms": 4}
            axes.errorbar(xs, ys, yerr=spread, capsize=2, label=name, **style)
        axes.set_yscale("log")
        for axis in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            axis(LogFormatter(minor_thresholds=(2, 0.4)))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(pruner, fontsize=10, color=INK)
        _style_axes(
            axes, xlabel=f"{against} (%)", ylabel="perplexity" if axes is panels[0] else ""
        )
    handles = [Line2D([], [], label=name, **_choose_style(name, names)) for name in names]
    _draw_legend(panels[-1], handles)
    return figure


def encode_png(figure: Figure) -> bytes:
    """Return a figure as PNG; equal figures give equal bytes."""
    buffer = io.BytesIO()
    # names may hold dollars, which are no formulas; some texts are only made when it is drawn
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with matplotlib.rc_context({"text.parse_math": False}):
        figure.savefig(
            buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None}
        )
    return buffer.getvalue()


def _create_figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    return figure


def _choose_style(name: str, names: Collection[str]) -> dict[str, Any]:
    """Return the line of a profile: the same in every figure that shows the same profiles."""
    if name == "uniform":
        return {"color": GREY, "ls": "--", "lw": 1.4}
    others = sorted({*names} - {"uniform", "searched"})
    colour, line = COLOURS[0], "-"
    if name in others:
        turn, index = divmod(others.index(name), len(COLOURS) - 1)
        colour, line = COLOURS[1 + index], LINES[turn % len(LINES)]
    return {"color": colour, "ls": line, "lw": 2.2 if name == "searched" else 1.6}


def _choose_unit(seconds: float) -> tuple[int, str]:
    """Return the seconds of a unit of time, and its name."""
    return (60, "minutes") if seconds >= 120 else (1, "seconds")


def _list_styles(n: int) -> list[dict[str, Any]]:
    return [
        {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
            "markersize": 4.0,
            "linewidth": 0.9,
            "alpha": 0.9,
        }
        for i in range(n)
    ]


def _compute_grid(profile: SparsityProfile) -> dict[str, dict[int, float]]:
    """Return the sparsity of each role in each block, weighted by size."""
    totals: dict[str, dict[int, np.ndarray]] = {}
    for unit, removed in zip(profile.layout, profile.removed, strict=True):
        blocks = totals.setdefault(unit.role, {})
        counted = np.array([removed * unit.cost, unit.size], dtype=np.float64)
        blocks[unit.block] = blocks.get(unit.block, np.zeros(2)) + counted
    return {
        role: {block: float(total[0] / total[1]) for block, total in blocks.items()}
        for role, blocks in totals.items()
    }


def _draw_target(axes: Axes, target: float) -> None:
    axes.axhline(target, color=GREY, ls="--", lw=1.4, label=f"uniform ({100 * target:g} %)")


def _draw_map(
    figure: Figure, axes: Axes, grid: Mapping[str, Mapping[int, float]], target: float
) -> None:
    """Draw roles over blocks, coloured by the difference from the uniform level."""
    blocks = sorted({block for values in grid.values() for block in values})
    span = range(blocks[0], blocks[-1] + 1)
    points = np.array([[v.get(b, np.nan) for b in span] for v in grid.values()]) - target
    limit = max(float(np.nanmax(np.abs(points))), 1e-3)
    image = axes.imshow(
        100 * points,
        cmap=matplotlib.colormaps["PuOr_r"],
        vmin=-100 * limit,
        vmax=100 * limit,
        aspect="auto",
        interpolation="nearest",
        extent=(blocks[0] - 0.5, blocks[-1] + 0.5, len(grid) - 0.5, -0.5),
    )
    axes.set_yticks(range(len(grid)), list(grid))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _style_axes(axes, xlabel="block")
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    bar = figure.colorbar(image, cax=axes.inset_axes((1.02, 0.0, 0.018, 1.0)))
    bar.set_label("difference from\nuniform (points)", fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=8, colors=INK, length=2)
    bar.outline.set_visible(False)


def _draw_steps(axes: Axes, xs: Sequence[float], scores: Sequence[float], fresh: bool) -> None:
    if fresh:
        axes.plot(xs, scores, color=COLOURS[0], marker="o", ms=3.5, lw=1.0)
        return
    label = f"best so far ({format_number(scores[-1])})"
    axes.plot(xs, scores, color=COLOURS[0], lw=2.2, drawstyle="steps-post", label=label)
    axes.plot(xs[-1:], scores[-1:], color=COLOURS[0], marker="o", ms=5)


def _label_point(axes: Axes, name: str, point: tuple[float, float], colour: str) -> None:
    """Write a name beside a point, aslant: neighbours in time hide each other less."""
    axes.annotate(
        name,
        point,
        xytext=(4, 5),
        textcoords="offset points",
        rotation=25,
        rotation_mode="anchor",
        va="bottom",
        fontsize=8,
        color=colour,
    )


def _style_axes(axes: Axes, *, xlabel: str = "", ylabel: str = "") -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(GREY)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, colors=INK, length=3)
    axes.set_xlabel(xlabel, fontsize=10, color=INK)
    axes.set_ylabel(ylabel, fontsize=10, color=INK)


def _show_percent(axes: Axes) -> None:
    """Show percentages, and at least two points of them: rounding is no structure."""
    low, high = axes.get_ylim()
    missing = max(0.0, 0.02 - (high - low)) / 2
    axes.set_ylim(low - missing, high + missing)
    axes.yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))


def _choose_height(names: Collection[str]) -> float:
    """Return the height of a figure whose legend holds these names."""
    return max(3.6, 0.9 + 0.19 * len(names))


def _draw_legend(axes: Axes, handles: Sequence[Line2D] | None = None) -> None:
    axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        borderaxespad=0.0,
        fontsize=9,
        frameon=False,
        labelcolor=INK,
    )
