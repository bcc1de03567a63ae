from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsity_search.errors import ConfigError, RunMismatchError
from sparsity_search.report.charts import read_library
from sparsity_search.report.comparison import (
    HEADER,
    format_csv,
    format_markdown,
    list_failures,
    list_rows,
    summarise,
    write_tables,
)
from sparsity_search.report.comparison_page import draw_figures, render, write_comparison
from sparsity_search.report.plots import LINES, _choose_style, draw_perplexity
from sparsity_search.report.seed_range import SeedRange
from sparsity_search.report.table import NONE
from sparsity_search.runs.comparison import ComparisonRecord
from sparsity_search.testing.runs import build_run_layout, build_run_profiles
from sparsity_search.utils.files import write_json
from tests.report.test_html import Page

#: Perplexity by sparsity, allocator, and seed.
QUALITY = {
    0.6: {"uniform": (80.0, 100.0), "owl": (72.0, 95.0), "bad|[x=1]": (160.0, 150.0)},
    0.7: {"uniform": (200.0, 220.0), "owl": (300.0, 209.0)},
}


def row(pruner: str, target: float, name: str, seed: int, value: float | None) -> dict[str, Any]:
    profile = f"60-{name}-seed0"
    factor = 1 if pruner == "wanda" else 0.5
    found = {
        "format": 1, "key": f"{pruner}-{100 * target:g}-{name}-seed{seed}", "pruner": pruner,
        "target": target, "allocator": name, "seed": seed, "error": None,
        "fingerprint": {"allocator": f"{name.title()}()", "pruner": pruner.title()},
    }  # fmt: skip
    if value is None:
        return {**found, "error": "too sparse"}
    return {
        **found,
        "profile": profile,
        "perplexity": factor * value,
        "ratio": value / QUALITY[target]["uniform"][seed],
        "sparsity": target,
        "removed": 1000,
        "allocation": {"seconds": 60, "cpu_seconds": 90, "passes": 1.5, "gradient_passes": 0.25},
        "shared_with": None if pruner == "wanda" else f"wanda-{name}",
        "pruning": {"seconds": 2, "cpu_seconds": 3},
        "notes": ["a <b>note</b>"],
        "pruning_notes": [],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    layout = build_run_layout()
    rows = [
        row(pruner, target, name, seed, values[seed])
        for pruner in ("wanda", "sparsegpt")
        for seed in range(2)
        for target, methods in QUALITY.items()
        for name, values in methods.items()
    ]
    rows.append(row("wanda", 0.6, "sleb", 0, None))
    for found in rows:
        write_json(tmp_path / "rows" / f"{found['key']}.json", found)
    profiles = build_run_profiles(layout)
    for name, profile in zip(("uniform", "owl", "bad|[x=1]"), profiles.values(), strict=True):
        write_json(tmp_path / "profiles" / f"60-{name}-seed0.json", profile.to_json())
    facts = {
        "format": 1,
        "command": "sparsity-search compare tiny",
        "model": {"name": "tiny<b>", "digest": "0123456789abcdef"},
        "text": {"final": {"source": "self", "digest": "digest-final"}},
        "layout": layout.to_json(),
        "dense": 15.6,
        "rows": [*(found["key"] for found in rows), "wanda-60-later-seed0"],
    }
    write_json(tmp_path / "compare.json", facts)
    return tmp_path


@pytest.fixture
def record(folder: Path) -> ComparisonRecord:
    return ComparisonRecord.read(folder)


def test_the_best_is_first_within_pruner_and_sparsity(record: ComparisonRecord) -> None:
    found = [group_[:3] for group_ in list_rows(record)]
    assert found == [
        ("wanda", "60.00 %", "owl"),
        ("wanda", "60.00 %", "uniform"),
        ("wanda", "60.00 %", "bad|[x=1]"),
        ("wanda", "60.00 %", "sleb"),
        ("wanda", "70.00 %", "uniform"),
        ("wanda", "70.00 %", "owl"),
        ("sparsegpt", "60.00 %", "owl"),
        ("sparsegpt", "60.00 %", "uniform"),
        ("sparsegpt", "60.00 %", "bad|[x=1]"),
        ("sparsegpt", "70.00 %", "uniform"),
        ("sparsegpt", "70.00 %", "owl"),
    ]


def test_rows_hold_means_and_ranges_over_seeds(record: ComparisonRecord) -> None:
    rows = {(r[0], r[1], r[2]): r[3:] for r in list_rows(record)}
    assert rows["wanda", "60.00 %", "owl"] == (
        "83.50", "0.925", "0.900 … 0.950", "2", "1 min 00 s", "1 min 30 s", "1.5", "0.25", "2.0 s"
    )  # fmt: skip
    assert rows["wanda", "70.00 %", "owl"][:3] == ("254.5", "1.225", "0.950 … 1.500")
    assert rows["sparsegpt", "60.00 %", "owl"][4:6] == ("1 min 00 s*", "1 min 30 s*")
    assert rows["wanda", "60.00 %", "sleb"] == ("refused", NONE, NONE, "0 of 1", *[NONE] * 5)
    assert all(len(r) == len(HEADER) for r in list_rows(record))


def test_a_mean_needs_every_seed(folder: Path) -> None:
    file = folder / "rows" / "wanda-60-owl-seed1.json"
    write_json(file, {**json.loads(file.read_text()), "perplexity": None, "ratio": None})
    rows = {(r[0], r[1], r[2]): r[3:] for r in list_rows(ComparisonRecord.read(folder))}
    assert rows["wanda", "60.00 %", "owl"][:4] == (NONE, NONE, NONE, "1 of 2")


def test_one_seed_has_no_range(folder: Path) -> None:
    for file in (folder / "rows").glob("*-seed1.json"):
        file.unlink()
    rows = list_rows(ComparisonRecord.read(folder))
    assert {r[5] for r in rows} == {NONE}
    assert rows[0][4:7] == ("0.900", NONE, "1")


def test_csv_has_a_line_for_each_row(record: ComparisonRecord) -> None:
    lines = list(csv.DictReader(io.StringIO(format_csv(record))))
    assert len(lines) == 21
    assert [line["allocator"] for line in lines[:3]] == ["owl", "owl", "uniform"]
    first = lines[1]
    assert (first["seed"], first["perplexity"], first["ratio"]) == ("1", "95.0", "0.95")
    assert (first["allocation_passes"], first["allocation_gradient_passes"]) == ("1.5", "0.25")
    assert (first["pruning_seconds"], first["settings"]) == ("2", "Owl()")
    refused = next(line for line in lines if line["allocator"] == "sleb")
    assert (refused["error"], refused["perplexity"]) == ("too sparse", "")


def test_markdown_is_one_table(record: ComparisonRecord) -> None:
    lines = format_markdown(record).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 13
    # a bar in a name is escaped, so that all lines have as many cells
    assert {len(re.split(r"(?<!\\)\|", line)) for line in table} == {len(HEADER) + 2}
    assert "- wanda-60-sleb-seed0: too sparse" in lines


def test_time_of_a_shared_profile_counts_once(record: ComparisonRecord) -> None:
    # ten rows with Wanda paid a minute each; those with SparseGPT shared
    assert summarise(record) == (
        "21 of 22 rows, 1 of them refused; dense perplexity 15.60; 10 min 00 s of allocation."
    )
    assert list_failures(record) == ["wanda-60-sleb-seed0: too sparse"]


def test_the_page_is_complete_and_self_contained(folder: Path) -> None:
    report = write_comparison(folder)
    assert report == folder / "report.html"
    html = report.read_text()
    page = Page(html)
    assert page.tables[0][1:] == [list(r) for r in list_rows(ComparisonRecord.read(folder))]
    assert page.sources == []
    assert not re.search(r"https?://|url\(|@import|<b>", html.replace(read_library(), ""))
    assert list(page.charts) == ["perplexity", *(f"profiles-{i}" for i in range(4))]
    for shown in ("tiny<b>", "digest-final", "too sparse", "a <b>note</b>", "Owl()"):
        assert shown in page.text
    plots = {path.name for path in (folder / "plots").iterdir()}
    assert plots == {"perplexity.png", *(f"profiles-{i}.png" for i in range(4))}
    assert (folder / "table.md").exists()
    assert (folder / "table.csv").exists()
    before = report.read_bytes()
    write_comparison(folder)
    assert report.read_bytes() == before


def test_a_comparison_that_has_just_begun(folder: Path) -> None:
    for file in (folder / "rows").iterdir():
        file.unlink()
    record = ComparisonRecord.read(folder)
    assert draw_figures(record) == {}
    assert "0 of 22 rows" in Page(render(record)).text
    write_tables(folder)
    assert len((folder / "table.csv").read_text().splitlines()) == 1


def test_profiles_are_those_of_the_condition(record: ComparisonRecord) -> None:
    layout = build_run_layout()
    assert record.profiles("wanda", 0.7).keys() == {"uniform", "owl"}
    found = record.profiles("wanda", 0.6)
    assert found.keys() == {"uniform", "owl", "bad|[x=1]"}
    assert found["owl"] == build_run_profiles(layout)["owl"]


def test_the_plot_has_a_panel_a_pruner_and_a_line_an_allocator() -> None:
    curves = {
        "wanda": {
            "uniform": [SeedRange(0.5, 40, 30, 55), SeedRange(0.7, 400, 350, 500)],
            "owl": [SeedRange(0.7, 300, 280, 320)],
        },
        "sparsegpt": {"uniform": [SeedRange(0.5, 30, 29, 31)]},
    }
    left, right = draw_perplexity(curves).axes
    assert (left.get_title(), right.get_title()) == ("wanda", "sparsegpt")
    assert left.get_yscale() == "log"
    line = left.containers[0].lines[0]
    assert list(line.get_xdata()) == pytest.approx([50, 70])
    assert list(line.get_ydata()) == [40, 400]
    whiskers = np.array([path.vertices for path in left.containers[0].lines[2][0].get_paths()])
    assert whiskers[:, :, 1].tolist() == [[30, 55], [350, 500]]
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["uniform", "owl"]


def test_many_lines_look_different() -> None:
    names = [f"method{i}" for i in range(20)]
    styles = {(s["color"], s["ls"]) for s in (_choose_style(name, names) for name in names)}
    assert len(styles) == 20
    assert len(LINES) == 3


@pytest.mark.parametrize(
    ("file", "text", "error"),
    [
        ("compare.json", None, ConfigError),
        ("compare.json", "{", RunMismatchError),
        ("compare.json", '{"format": 2}', RunMismatchError),
        ("compare.json", '{"format": 1, "rows": []}', RunMismatchError),
        ("rows/wanda-60-owl-seed0.json", "[]", RunMismatchError),
        ("rows/wanda-60-owl-seed0.json", '{"format": 1}', RunMismatchError),
    ],
)
def test_files_that_are_no_good(
    folder: Path, file: str, text: str | None, error: type[Exception]
) -> None:
    (folder / file).unlink() if text is None else (folder / file).write_text(text)
    with pytest.raises(error, match=Path(file).name):
        ComparisonRecord.read(folder)


def test_pages_need_no_torch() -> None:
    code = (
        "import sys, sparsity_search.report.comparison_page;"
        "print([m for m in ('torch', 'transformers', 'matplotlib.pyplot') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
