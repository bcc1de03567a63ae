from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sparsity_search.errors import MissingMeasurementsWarning
from sparsity_search.profiles.profile import count_pattern_zeros, from_counts
from sparsity_search.report import table, write_report
from sparsity_search.report.charts import read_library
from sparsity_search.report.html import render
from sparsity_search.report.steps import STEP_HEADER, list_step_rows
from sparsity_search.runs.record import RunRecord
from sparsity_search.testing.runs import make_run
from tests.runs.test_record import contents, edit


class Page(HTMLParser):
    """The cells, links, charts and text of a page; fails on a tag that is not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.sources: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert not self._open
        found = re.search(r'id="charts">(.*?)</script>', html)
        self.charts = json.loads(found[1]) if found else {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.sources += [v or "" for k, v in attrs if k in ("src", "href")]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("script", "style"):
            return
        self.text += data
        if self._open and self._open[-1] in ("td", "th"):
            self.tables[-1][-1].append(data)


def test_rows_hold_exact_counts_scores_and_ratios(record: RunRecord) -> None:
    cut = "1,275,494"
    assert table.list_rows(record) == [
        ("dense", "0.00 %", "84", "0", "0.000", "15.60", "0.390"),
        ("uniform", "60.00 %", cut, "0.9600", "1.000", "40.00", "1.000"),
        ("owl", "60.00 %", cut, "0.8400", "0.875", "35.00", "0.875"),
        ("searched", "60.00 %", cut, "0.5760", "0.600", "27.00", "0.675"),
    ]
    assert all(len(row) == len(table.HEADER) for row in table.list_rows(record))


def test_what_is_saved_has_a_column(record: RunRecord) -> None:
    units = record.layout
    patterns = ["2:4", "4:8", "", "4:8"] * (len(units) // 4)
    removed = [
        count_pattern_zeros(u, p) if p else u.zeros for u, p in zip(units, patterns, strict=True)
    ]
    rows = [{**row, "saving": 0.25 + i / 100} for i, row in enumerate(record.results["rows"])]
    run = {**record.run, "config": {**record.config, "budget": {"sparsity": None, "saving": 0.2}}}
    chosen = replace(
        record,
        run=run,
        results={**record.results, "rows": rows},
        profiles={**record.profiles, "searched": from_counts(units, removed, patterns)},
    )
    assert table.list_columns(record) == table.HEADER
    assert table.list_columns(chosen)[:3] == ("profile", "saving", "sparsity")
    assert [row[:3] for row in table.list_rows(chosen)][1:3] == [
        ("uniform", "26.00 %", "60.00 %"),
        ("owl", "27.00 %", "60.00 %"),
    ]
    unfinished = replace(chosen, results=None)
    assert table.list_rows(unfinished)[0][:3] == ("uniform", table.NONE, "60.00 %")
    n = len(units) // 4
    mixture = f" and saves 28.00 % with {n} units dense, {n} units 2:4, {2 * n} units 4:8"
    assert mixture in table.summarise(chosen)
    assert "saves" not in table.summarise(record)
    assert (table.describe_budget(record), table.describe_budget(chosen)) == (
        "60.00 % sparsity",
        "20.00 % saving",
    )
    assert chosen.target == record.profiles["uniform"].sparsity
    assert replace(chosen, profiles={}).target == 0
    assert "at 20.00 % saving</h1>" in render(chosen)


def test_rows_without_a_score(record: RunRecord) -> None:
    results = {**record.results, "rows": [{"name": "owl", "score": None, "removed": 5}]}
    rows = {row[0]: row for row in table.list_rows(replace(record, results=results))}
    assert rows["owl"][2:] == ("5", *[table.NONE] * 4)
    assert rows["uniform"][2:] == ("1,275,494", *[table.NONE] * 4)


def test_groups_show_every_profile(record: RunRecord) -> None:
    assert table.list_group_columns(record, "role")[3:] == ("uniform", "owl", "searched")
    rows = {row[0]: row for row in table.list_group_rows(record, "role")}
    assert rows["gate"][1:3] == ("12", "528,384")
    share = record.profiles["searched"].grouped("role")["gate"]
    assert rows["gate"][-1] == table.format_percent(share)
    assert [row[0] for row in table.list_group_rows(record, "block")] == [
        str(i) for i in range(12)
    ]


def test_rungs_count_every_measurement(record: RunRecord) -> None:
    assert table.list_rungs(record) == [
        ("0", "512", "4", "48", "1", "0.5000"),
        ("1", "4,096", "1", "14", "0", "2.000"),
    ]


def test_search_facts(record: RunRecord) -> None:
    facts = table.list_search_facts(record)
    assert facts["rounds"] == "3"
    assert facts["evaluations"] == "62"
    assert facts["failed evaluations"] == "1"
    assert facts["search time"] == "52.0 s"
    assert "settings found" not in facts


def test_the_settings_that_were_found(record: RunRecord) -> None:
    found = {**(record.results or {})["search"], "parameters": {"m": 5, "spread": 0.08}}
    other = replace(record, results={**(record.results or {}), "search": found})
    assert table.list_search_facts(other)["settings found"] == "m = 5, spread = 0.08"


def test_summary(record: RunRecord) -> None:
    assert table.summarise(record) == (
        "searched removes 1,275,494 of 2,125,824 weights (60.00 %); score 0.5760, 0.600 times "
        "that of uniform; perplexity 27.00, 0.675 times that of uniform."
    )


@pytest.mark.parametrize("seconds", [59.94, 59.95, 60, 3599.4, 3599.6, 7170, 7199.9])
def test_durations_never_show_sixty(seconds: float) -> None:
    assert not re.search(r"\b60", table.format_duration(seconds))


def test_report_is_complete_and_self_contained(run_dir: Path) -> None:
    report = write_report(run_dir)
    assert report == run_dir / "report.html"
    html = report.read_text()
    page = Page(html)
    assert page.tables[0][1:] == [list(row) for row in table.list_rows(RunRecord.read(run_dir))]
    steps = [list(row) for row in list_step_rows(RunRecord.read(run_dir))]
    assert page.tables[1] == [list(STEP_HEADER), *steps]
    assert len(page.tables) == 6
    assert page.sources == []
    assert not re.search(r"https?://|url\(|@import", html.replace(read_library(), ""))
    assert list(page.charts) == ["steps", "profile", "map", "comparison", "score"]
    assert all(f'id="chart-{name}"' in html for name in page.charts)
    for shown in ("sparsity-search search tiny-llama", "0123456789abcdef", "digest-final"):
        assert shown in page.text
    assert "lowered the score by 31.43 % (searched)." in page.text
    for shown in ("torch 2.9.0", "1 dead input", "name: wanda", "1 min 11 s", "2026-01-02"):
        assert shown in page.text


def test_what_another_pruner_rebuilt_is_told(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path, rounds=1, finalise="alps")).read_text())
    record = RunRecord.read(tmp_path)
    headline, _, roles, *_ = page.tables
    assert [row[:2] for row in headline] == [
        ["profile", "pruner"],
        ["dense", table.NONE],
        *([name, "wanda"] for name in ("uniform", "owl", "searched")),
        *([name, "alps"] for name in ("uniform-alps", "searched-alps")),
    ]
    quotients = {row[0]: (row[5], row[7]) for row in headline[1:]}
    assert quotients["searched"] == quotients["searched-alps"] == ("0.600", "0.675")
    assert quotients["uniform-alps"] == ("1.000", "1.000")
    assert roles[0][3:] == ["uniform", "owl", "searched"]
    told = "score 0.2880, 0.600 times that of uniform with alps; perplexity 13.50, 0.675 times"
    assert told in table.summarise(record)


def test_a_rebuilt_profile_without_uniform_beside_it(tmp_path: Path) -> None:
    record = RunRecord.read(make_run(tmp_path, rounds=1, finalise="alps"))
    rows = [row for row in record.results["rows"] if row["name"] != "uniform-alps"]
    other = replace(record, results={**record.results, "rows": rows})
    assert table.list_rows(other)[-1][5] == table.NONE
    assert "score 0.2880, 0.300 times that of uniform with wanda" in table.summarise(other)


def test_a_search_without_a_gain_says_so_first(record: RunRecord) -> None:
    other = replace(record, results={**record.results, "shipped": "uniform"})
    told = "No profile was better than the uniform one, which is shipped. uniform removes"
    assert table.summarise(other).startswith(told)
    lead = '<p class="lead warning">'
    assert f"{lead}{told}" in render(other)
    assert lead not in render(record)


def test_older_runs_have_no_steps(run_dir: Path) -> None:
    (run_dir / "steps.json").unlink()
    html = write_report(run_dir).read_text()
    assert "<h2>Steps</h2>" not in html
    assert "<h2>Result</h2>" in html


def test_plots_are_files_too(run_dir: Path) -> None:
    write_report(run_dir)
    names = {path.name for path in (run_dir / "plots").iterdir()}
    assert names == {"profile.png", "comparison.png", "score.png", "steps.png"}


def test_writing_again_changes_nothing(run_dir: Path) -> None:
    write_report(run_dir)
    first = contents(run_dir)
    write_report(run_dir)
    assert contents(run_dir) == first


def test_report_of_an_unfinished_search(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path, rounds=2, finished=False)).read_text())
    assert "The search is not finished: 42 evaluations." in page.text
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["score.png"]


def test_report_of_a_run_that_measured_nothing(tmp_path: Path) -> None:
    make_run(tmp_path, rounds=0, finished=False)
    (tmp_path / "journal.log").unlink()
    with pytest.warns(MissingMeasurementsWarning):
        page = Page(write_report(tmp_path).read_text())
    assert "The search is not finished." in page.text
    assert page.charts == {}


def test_fresh_tokens_are_told(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path, rounds=2, fresh=True)).read_text())
    assert "Each round had its own tokens" in page.text
    assert (tmp_path / "plots" / "winners.png").exists()


def test_a_report_without_the_measurements_says_so(run_dir: Path) -> None:
    (run_dir / "journal.log").unlink()
    with pytest.warns(MissingMeasurementsWarning, match=r"no measurements: .*journal\.log"):
        page = Page(write_report(run_dir).read_text())
    assert "measurements of the search are not in this report" in page.text
    assert "searched removes 1,275,494" in page.text
    assert not (run_dir / "plots" / "score.png").exists()
    facts = table.list_search_facts(RunRecord.read(run_dir))
    assert (facts["evaluations"], facts["failed evaluations"]) == ("62", table.NONE)


def test_a_report_is_not_replaced_by_one_without_the_measurements(run_dir: Path) -> None:
    write_report(run_dir)
    (run_dir / "journal.log").unlink()
    before = contents(run_dir)
    with pytest.warns(MissingMeasurementsWarning, match=r"report\.html is kept as it was: "):
        write_report(run_dir)
    assert contents(run_dir) == before


def test_text_is_escaped(record: RunRecord) -> None:
    hostile = "<script>alert('x')</script>"
    run = {**record.run, "model": {"name": hostile}, "command": hostile}
    results = {**record.results, "notes": [hostile]}
    html = render(replace(record, run=run, results=results))
    assert hostile not in html
    assert Page(html).text.count(hostile) >= 3


@pytest.mark.parametrize("password", ["hunter2", 'it\'s: #"a b" hunter2', "a@b/c:hunter2"])
def test_credentials_stay_out(run_dir: Path, password: str) -> None:
    url = f"postgresql://me:{password}@host/db"

    def add(run: dict[str, object]) -> None:
        run["config"]["study"]["storage"] = url  # type: ignore[index]
        run["command"] = shlex.join(["sparsity-search", "--set", f"study.storage={url}"])

    record = RunRecord.read(run_dir)
    edit(run_dir / "run.json", add)
    html = render(replace(record, run=json.loads((run_dir / "run.json").read_text())))
    assert "hunter2" not in html
    assert html.count("postgresql://***@host/db") == 2


def test_reports_need_no_torch(run_dir: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from sparsity_search.report import write_report;"
        f"write_report(Path({str(run_dir)!r}));"
        "print([m for m in ('torch', 'transformers', 'matplotlib.pyplot') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
