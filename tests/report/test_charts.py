from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.profiles.profile import from_counts
from sparsity_search.report.charts import (
    draw_comparison,
    draw_heat_map,
    draw_perplexity,
    draw_profile,
    draw_scores,
    draw_steps,
    draw_trails,
    read_library,
)
from sparsity_search.report.seed_range import SeedRange
from sparsity_search.runs.record import RunRecord, ScoreTrace
from sparsity_search.testing.runs import TARGET, build_run_layout, build_run_steps

LAYOUT = Layout(
    [
        Unit(name="l.0.q", block=0, role="q", count=1000),
        Unit(name="l.0.e0", block=0, role="expert", count=2000),
        Unit(name="l.0.e1", block=0, role="expert", count=2000),
        Unit(name="l.1.q", block=1, role="q", count=1000),
    ]
)
PROFILE = from_counts(LAYOUT, [500, 1000, 2000, 750])


def read(values: Any) -> list[Any]:
    """Return numbers of a chart, which may be packed."""
    if isinstance(values, dict):
        flat = np.frombuffer(base64.b64decode(values["bdata"]), dtype=values["dtype"])
        return list(flat)
    return list(values)


def lines(chart: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {trace["name"]: trace for trace in chart["data"]}


def test_a_profile_has_a_line_for_each_role_and_tells_its_counts() -> None:
    found = lines(draw_profile(PROFILE, target=0.7))
    assert list(found) == ["q", "expert"]
    assert (read(found["q"]["x"]), read(found["q"]["y"])) == ([0, 1], [0.5, 0.75])
    assert (read(found["expert"]["x"]), read(found["expert"]["y"])) == ([0], [0.75])
    assert found["q"]["customdata"][1] == "l.1.q<br>750 of 1,000 weights removed, 75.00%"
    told = "l.0.e0 and 1 more<br>3,000 of 4,000 weights removed, 75.00%"
    assert found["expert"]["customdata"] == [told]


def test_a_heat_map_shows_the_distance_from_uniform_in_points() -> None:
    assert draw_heat_map(PROFILE, target=0.7)["title"] == "Difference from the uniform level"
    (trace,) = draw_heat_map(PROFILE, target=0.7)["data"]
    assert trace["y"] == ["q", "expert"]
    assert trace["z"][0] == pytest.approx([-20, 5])
    assert trace["z"][1] == [pytest.approx(5), None]
    assert (trace["zmin"], trace["zmax"]) == pytest.approx((-20, 20))
    assert trace["customdata"][1][1] == ""


def test_a_comparison_has_a_line_for_each_profile(record: RunRecord) -> None:
    found = lines(draw_comparison(record.profiles, target=TARGET))
    for name, profile in record.profiles.items():
        assert read(found[name]["y"]) == pytest.approx(list(profile.grouped("block").values()))
    assert draw_comparison({"mine": PROFILE}, target=0.7)["layout"]["shapes"]
    assert "shapes" not in draw_comparison({"mine": PROFILE}, target=None)["layout"]


def test_steps_are_points_by_pruner_beside_the_best_so_far() -> None:
    steps = build_run_steps(build_run_layout(), 120.0, "alps")
    found = lines(draw_steps(steps, score="KL"))
    assert list(found) == ["best so far", "wanda", "alps"]
    assert read(found["best so far"]["y"]) == [0.96, 0.84, 0.576, 0.288, 0.288]
    assert found["alps"]["text"] == ["searched-alps", "uniform-alps"]
    times = [step.elapsed / 60 for step in steps if step.pruner["name"] == "alps"]
    assert read(found["alps"]["x"]) == pytest.approx(times)
    assert "-50.0%" in found["alps"]["customdata"][0]
    broken = [replace(step, row={**step.row, "score": None}) for step in steps[1:2]]
    assert len(lines(draw_steps([steps[0], *broken], score="KL"))["wanda"]["text"]) == 1


def test_trails_of_several_runs() -> None:
    steps = build_run_steps(build_run_layout(), 120.0, "alps")
    found = lines(draw_trails({"a": steps, "b": steps[:1], "none": []}))
    assert list(found) == ["a", "b"]
    assert read(found["b"]["y"]) == [0.96, 0.96]


def test_scores_against_time_and_tokens() -> None:
    trace = ScoreTrace((60.0, 300.0), (1, 40), (512, 9000), (0.9, 0.7))
    chart = draw_scores(trace, {"owl": 0.8}, score="KL")
    best = [each for each in chart["data"] if each["name"] == "best so far"]
    assert [read(each["x"]) for each in best] == [[1, 5], [512, 9000]]
    assert chart["layout"]["xaxis2"]["title"]["text"] == "tokens measured"
    assert [read(each["y"]) for each in chart["data"] if each["name"] == "owl"] == [[0.8, 0.8]] * 2


def test_perplexity_has_a_panel_for_each_pruner() -> None:
    points = [SeedRange(0.5, 40, 30, 55), SeedRange(0.7, 400, 350, 500)]
    chart = draw_perplexity({"wanda": {"owl": points}, "alps": {"owl": points[:1]}})
    first, second = chart["data"]
    assert read(first["y"]) == [40, 400]
    assert read(first["error_y"]["array"]) == [15, 100]
    assert read(first["error_y"]["arrayminus"]) == [10, 50]
    assert (first["showlegend"], second["showlegend"]) == (True, False)
    assert chart["layout"]["yaxis2"]["type"] == "log"


def test_names_are_shown_and_not_obeyed() -> None:
    name = "<a href='http://x'>x</a>"
    layout = Layout([Unit(name=name, block=0, role=name, count=10)])
    profile = from_counts(layout, [5])
    steps = build_run_steps(build_run_layout(), 120.0, "alps")
    charts = [
        draw_profile(profile, target=0.5),
        draw_heat_map(profile, target=0.5),
        draw_comparison({name: profile}, target=0.5),
        draw_steps([replace(steps[0], name=name), *steps[1:]], score="KL"),
        draw_perplexity({name: {name: [SeedRange(0.5, 3.0, 2.0, 4.0)]}}),
    ]
    for chart in charts:
        assert "<a href" not in str(chart)


def test_the_library_can_stand_in_a_page() -> None:
    library = read_library()
    assert "Plotly" in library
    assert "</script" not in library
