"""The interactive figures of pages, drawn by plotly in the browser.

Colours of texts and grids follow the page, which may be light or dark: a chart sets those of its
data alone.
"""

from __future__ import annotations

import html
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.report.rows import describe_pruner
from sparsity_search.report.seed_range import SeedRange
from sparsity_search.report.table import format_duration, format_integer, format_number
from sparsity_search.runs.gains import Gain, list_gains, trace_best
from sparsity_search.runs.record import ScoreTrace
from sparsity_search.runs.trail import StepRecord

#: A figure as plotly's script takes it, and its title, which is a heading of the page.
Chart = dict[str, Any]
#: Okabe and Ito's palette with its blues lightened, so that each is seen on white and on black.
COLOURS = ("#2a8fd0", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#b0557f", "#999933")
GREY = "#8a8a8a"
DASHES = ("solid", "dashdot", "dot")


@dataclass
class _Cell:
    """The units of one role in one block."""

    names: list[str] = field(default_factory=list)
    removed: int = 0
    size: int = 0

    @property
    def sparsity(self) -> float:
        return self.removed / self.size

    @property
    def text(self) -> str:
        more = f" and {len(self.names) - 1} more" if len(self.names) > 1 else ""
        counts = f"{format_integer(self.removed)} of {format_integer(self.size)} weights"
        return f"{escape(self.names[0])}{more}<br>{counts} removed, {self.sparsity:.2%}"


def escape(text: str) -> str:
    """Return a text that plotly, which reads some HTML, shows as it is."""
    return html.escape(text, quote=False)


def read_library() -> str:
    """Return plotly's script, which draws charts without a network."""
    library: str = files("plotly").joinpath("package_data/plotly.min.js").read_text("utf-8")
    return library


def draw_profile(profile: SparsityProfile, *, target: float) -> Chart:
    """Draw sparsity over depth, a line for each role; the pointer shows unit and counts.

    Args:
        profile: The profile.
        target: The uniform level.
    """
    figure = go.Figure()
    for index, (role, cells) in enumerate(_group(profile).items()):
        figure.add_scatter(
            x=list(cells),
            y=[cell.sparsity for cell in cells.values()],
            customdata=[cell.text for cell in cells.values()],
            hovertemplate="%{customdata}<extra></extra>",
            name=escape(role),
            mode="lines+markers",
            line={"color": COLOURS[index % len(COLOURS)], "width": 1.5},
            marker={"size": 5},
        )
    _add_target(figure, target)
    return _finish(figure, "Sparsity over depth", x="block", y="sparsity", percent=True)


def draw_heat_map(profile: SparsityProfile, *, target: float) -> Chart:
    """Draw each role in each block, coloured by its distance from the uniform level.

    Args:
        profile: The profile.
        target: The uniform level.
    """
    groups = _group(profile)
    blocks = sorted({block for cells in groups.values() for block in cells})
    rows = [[cells.get(block) for block in blocks] for cells in groups.values()]
    points = [
        [None if cell is None else 100 * (cell.sparsity - target) for cell in row] for row in rows
    ]
    limit = max((abs(p) for row in points for p in row if p is not None), default=0.0) or 0.1
    figure = go.Figure(
        go.Heatmap(
            x=blocks,
            y=[escape(role) for role in groups],
            z=points,
            customdata=[[cell.text if cell else "" for cell in row] for row in rows],
            hovertemplate="%{customdata}<extra></extra>",
            colorscale="PuOr_r",
            zmin=-limit,
            zmax=limit,
            xgap=1,
            ygap=1,
            colorbar={"title": {"text": "points<br>from<br>uniform"}, "thickness": 12},
        )
    )
    figure.update_yaxes(autorange="reversed", type="category")
    height = 170 + 26 * len(groups)
    return _finish(figure, "Difference from the uniform level", x="block", y="", height=height)


def draw_comparison(
    profiles: Mapping[str, SparsityProfile],
    *,
    target: float | None,
    title: str = "Mean sparsity of each block, weighted by size",
) -> Chart:
    """Draw the mean sparsity of each block under each profile, and a uniform level."""
    figure = go.Figure()
    for name, profile in profiles.items():
        means = profile.grouped("block")
        figure.add_scatter(
            x=list(means),
            y=list(means.values()),
            name=escape(name),
            mode="lines",
            line=_choose_line(name, profiles),
            hovertemplate="block %{x}: %{y:.2%}",
        )
    if target is not None and "uniform" not in profiles:
        _add_target(figure, target)
    return _finish(figure, title, x="block", y="sparsity", percent=True)


def draw_steps(steps: Sequence[StepRecord], *, score: str) -> Chart:
    """Draw the candidates of a search over the time of the job, and the best score so far.

    Args:
        steps: In their order, uniform first; at least one has a finite score.
        score: Name of the score, for the axis.
    """
    figure = go.Figure()
    shown = [gain for gain in list_gains(steps) if gain.step.score is not None]
    line = {"color": GREY, "width": 2}
    _add_best(figure, [gain.step for gain in shown], "best so far", line)
    for pruner in dict.fromkeys(describe_pruner(gain.step.pruner) for gain in shown):
        own = [gain for gain in shown if describe_pruner(gain.step.pruner) == pruner]
        figure.add_scatter(
            x=[gain.step.elapsed / 60 for gain in own],
            y=[gain.step.score for gain in own],
            name=escape(pruner),
            mode="markers+text",
            text=[escape(gain.step.name) for gain in own],
            textposition="top center",
            marker={"size": 10},
            customdata=[_describe_gain(gain) for gain in own],
            hovertemplate="%{customdata}<extra></extra>",
        )
    figure.update_layout(colorway=COLOURS)
    return _finish(figure, "Score over the time of the job", x="minutes", y=score)


def draw_trails(trails: Mapping[str, Sequence[StepRecord]]) -> Chart:
    """Draw the best score so far of several searches over the time of their jobs."""
    figure = go.Figure()
    for name, steps in trails.items():
        _add_best(figure, steps, name, _choose_line(name, trails))
    return _finish(figure, "Best score so far", x="minutes", y="score (lower is better)")


def draw_scores(
    trace: ScoreTrace, references: Mapping[str, float], *, score: str, fresh: bool = False
) -> Chart:
    """Draw the best score of a study against its time and its tokens.

    Args:
        trace: At least one point.
        references: Scores of other profiles on the same tokens.
        score: Name of the score, for the axis.
        fresh: The points are winners of rounds, each on its own tokens.
    """
    figure = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.04)
    times = [elapsed / 60 for elapsed in trace.elapsed]
    for column, xs in enumerate((times, trace.tokens), start=1):
        figure.add_scatter(
            x=list(xs),
            y=list(trace.scores),
            name="winner of the round" if fresh else "best so far",
            mode="lines+markers" if fresh else "lines",
            line={"shape": "linear" if fresh else "hv", "color": COLOURS[0], "width": 2},
            showlegend=column == 1,
            row=1,
            col=column,
        )
        for name, value in references.items():
            figure.add_scatter(
                x=[0, xs[-1]],
                y=[value, value],
                name=escape(name),
                mode="lines",
                line={**_choose_line(name, references), "dash": "dash"},
                showlegend=column == 1,
                row=1,
                col=column,
            )
    title = "Winner of each round (fresh tokens each)" if fresh else "Best score of the study"
    chart = _finish(figure, title, x="minutes of search", y=score)
    chart["layout"]["xaxis2"]["title"] = {"text": "tokens measured"}
    return chart


def draw_perplexity(
    curves: Mapping[str, Mapping[str, Sequence[SeedRange]]], against: str = "sparsity"
) -> Chart:
    """Draw perplexity against sparsity: one panel a pruner, one line a profile.

    Args:
        curves: Points by pruner and profile; whiskers show the range over seeds.
        against: Name of the horizontal axis.
    """
    names = list(dict.fromkeys(name for lines in curves.values() for name in lines))
    titles = [escape(pruner) for pruner in curves]
    figure = make_subplots(
        1, len(curves), shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.04
    )
    shown: set[str] = set()
    for column, lines in enumerate(curves.values(), start=1):
        for name, points in lines.items():
            figure.add_scatter(
                x=[point.sparsity for point in points],
                y=[point.mean for point in points],
                error_y={
                    "array": [point.high - point.mean for point in points],
                    "arrayminus": [point.mean - point.low for point in points],
                },
                name=escape(name),
                mode="lines+markers",
                line=_choose_line(name, names),
                hovertemplate="%{x:.2%}: %{y:.4g}",
                showlegend=name not in shown,
                legendgroup=escape(name),
                row=1,
                col=column,
            )
            shown.add(name)
    figure.update_yaxes(type="log")
    figure.update_xaxes(tickformat=".0%", title={"text": against})
    return _finish(figure, f"Perplexity against {against}", x=against, y="perplexity")


def _add_best(
    figure: go.Figure, steps: Sequence[StepRecord], name: str, line: Mapping[str, Any]
) -> None:
    """Add the best score so far over the time of a job, if there is one."""
    trace = trace_best(steps)
    if trace.scores:
        end = max(step.elapsed for step in steps)
        figure.add_scatter(
            x=[elapsed / 60 for elapsed in (*trace.elapsed, end)],
            y=[*trace.scores, trace.scores[-1]],
            name=escape(name),
            mode="lines",
            line={**line, "shape": "hv"},
            hovertemplate="%{x:.1f} min: %{y:.4g}",
        )


def _describe_gain(gain: Gain) -> str:
    """Return what the pointer shows of a candidate."""
    step = gain.step
    figures = f"score {format_number(step.score)}"
    figures += f", perplexity {format_number(step.row.get('perplexity'))}"
    brought = "" if gain.change is None else f", {gain.change:+.1%}"
    pruner = escape(describe_pruner(step.pruner))
    return (
        f"{escape(step.name)}, {pruner}<br>{figures}<br>{format_duration(step.seconds)}{brought}"
    )


def _group(profile: SparsityProfile) -> dict[str, dict[int, _Cell]]:
    """Return the units of each role in each block."""
    found: dict[str, dict[int, _Cell]] = {}
    for unit, removed in zip(profile.layout, profile.removed, strict=True):
        cell = found.setdefault(unit.role, {}).setdefault(unit.block, _Cell())
        cell.names.append(unit.name)
        cell.removed += removed * unit.cost
        cell.size += unit.size
    return found


def _choose_line(name: str, names: Collection[str]) -> dict[str, Any]:
    """Return the line of a profile: the same in every chart that shows the same profiles."""
    if name == "uniform":
        return {"color": GREY, "dash": "dash", "width": 1.5}
    others = sorted({*names} - {"uniform"})
    turn, index = divmod(others.index(name), len(COLOURS))
    return {"color": COLOURS[index], "dash": DASHES[turn % len(DASHES)], "width": 2}


def _add_target(figure: go.Figure, target: float) -> None:
    figure.add_hline(y=target, line={"color": GREY, "dash": "dash", "width": 1.5})


def _finish(
    figure: go.Figure, title: str, *, x: str, y: str, height: int = 380, percent: bool = False
) -> Chart:
    """Return a figure with titles, for a page that is narrow or wide, light or dark."""
    figure.update_layout(
        height=height,
        template="none",
        margin={"l": 64, "r": 12, "t": 24, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hoverlabel={"namelength": -1},
        legend={"orientation": "h", "y": -0.25, "yanchor": "top"},
    )
    figure.update_xaxes(title={"text": x}, zeroline=False, automargin=True)
    figure.update_yaxes(zeroline=False, automargin=True)
    figure.update_layout(yaxis={"title": {"text": y}})
    if percent:
        figure.update_yaxes(tickformat=".0%")
    return {"title": title, **json.loads(figure.to_json())}
