"""A front of profiles as files: the results for each budget, and the growth of the front."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsity_search.errors import RunMismatchError
from sparsity_search.report.hypervolume import (
    FrontPoint,
    compute_hypervolume,
    select_front,
    trace_hypervolume,
)
from sparsity_search.report.pages import can_draw_pages, render_page
from sparsity_search.report.rows import describe_pruner, find_uniform
from sparsity_search.report.seed_range import SeedRange
from sparsity_search.report.table import format_number, format_percent
from sparsity_search.runs.directory import RunDirectory
from sparsity_search.runs.record import RunRecord, find_shipped_name, trace_scores
from sparsity_search.utils.files import write_bytes, write_text
from sparsity_search.utils.shapes import Shape
from sparsity_search.utils.versioned import VersionedJson

#: Name of the file of a front.
FRONT = "front.json"
#: Name of its page.
FRONT_PAGE = "front.html"


class _FrontShape(Shape):
    """The file of a front."""

    rows: list[dict[str, Any]]
    hypervolume: float
    growth: list[list[float]]


#: Contents of that file.
FRONT_JSON = VersionedJson("a front", 1, _FrontShape, RunMismatchError)
COLUMNS = ("target", "name", "saving", "sparsity", "removed", "score", "perplexity", "on_front")


@dataclass(frozen=True)
class FrontRecord:
    """The results of the searches in a folder.

    Attributes:
        runs: Their records by folder, by rising target.
    """

    runs: Mapping[str, RunRecord]

    @classmethod
    def read(cls, folder: Path, storage: str | None = None) -> FrontRecord:
        """Return the finished searches of a folder.

        Args:
            folder: The folder.
            storage: URL of their database, if they have one. It is not read without.

        Raises:
            RunMismatchError: A file in it is corrupt.
        """
        runs = [run.path for run in RunDirectory.list_finished(folder)]
        found = {path.name: RunRecord.read(path, storage) for path in runs}
        return cls(dict(sorted(found.items(), key=lambda item: item[1].asked)))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Every profile of the final comparisons, with its figures."""
        rows = [
            {"target": record.asked, "run": run, **row}
            for run, record in self.runs.items()
            for row in (record.results or {})["rows"]
            if row["name"] != "dense"
        ]
        best = {point.name for point in self.points}
        return [{**row, "on_front": _get_key(row) in best} for row in rows]

    @property
    def points(self) -> list[FrontPoint]:
        """The front: profiles that no other one beats in both score and sparsity, or saving."""
        scored = [
            FrontPoint(_get_removed(row), row["score"], _get_key({"run": run, **row}))
            for run, record in self.runs.items()
            for row in (record.results or {})["rows"]
            if row["name"] != "dense" and row["score"] is not None
        ]
        return select_front(scored)

    @property
    def worst(self) -> float:
        """The greatest score of a uniform profile: the reference of the hypervolume."""
        scores = [r["score"] for r in self.rows if r["name"] == "uniform" and r["score"]]
        return max(scores, default=0.0)

    def growth(self) -> list[tuple[float, float]]:
        """Return seconds of search, and the hypervolume of the proxy's scores then."""
        runs = []
        for record in self.runs.values():
            falls = trace_scores(record.measurements, record.top_rung, fresh=record.fresh)
            runs.append((record.asked, list(zip(falls.elapsed, falls.scores, strict=True))))
        worst = max((scores[0][1] for _, scores in runs if scores), default=0.0)
        return trace_hypervolume(runs, worst)

    def to_json(self) -> dict[str, Any]:
        """Return the front as a JSON object."""
        return {
            "format": FRONT_JSON.version,
            "rows": self.rows,
            "worst": self.worst,
            "hypervolume": compute_hypervolume(self.points, self.worst),
            "growth": self.growth(),
        }


def write_front(folder: Path, storage: str | None = None) -> FrontRecord:
    """Write a front's JSON and CSV files and, with the extra ``report``, its page and figure.

    Args:
        folder: Folder of the searches.
        storage: URL of their database, if they have one.

    Returns:
        The front that they hold.
    """
    found = FrontRecord.read(folder, storage)
    FRONT_JSON.write(folder / FRONT, found.to_json())
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(found.rows)
    write_text(folder / "front.csv", text.getvalue())
    if can_draw_pages():
        write_bytes(folder / "front.png", _draw(found))
        write_text(folder / FRONT_PAGE, render(found))
    return found


def render(found: FrontRecord) -> str:
    """Return the page of a front as HTML, with charts inside."""
    from sparsity_search.report import charts

    first, figures = next(iter(found.runs.values())), found.rows
    profiles = {
        f"{record.asked:.2%}": record.shipped
        for record in found.runs.values()
        if record.shipped is not None
    }
    header = ("profile", "target", first.removal, "score", "perplexity", "on the front")
    rows = [
        (
            f"{row['run']}/{row['name']}",
            format_percent(row["target"]),
            format_percent(_get_removed(row)),
            format_number(row["score"]),
            format_number(row["perplexity"]),
            "yes" if row["on_front"] else "",
        )
        for row in figures
    ]
    context = {
        "title": f"{first.model_name}: {len(found.runs)} budgets",
        "summary": f"{sum(row['on_front'] for row in figures)} of {len(rows)} profiles are "
        f"beaten by no other one in both score and {first.removal}.",
        "result": {"header": header, "rows": rows},
        "runs": list(found.runs),
    }
    shown = {
        "perplexity": charts.draw_perplexity(_list_curves(found), first.removal),
        "profiles": charts.draw_comparison(
            profiles, target=None, title="Mean sparsity of each block, by budget"
        ),
    }
    captions = {
        "perplexity": "The shipped profile of each budget beside the uniform one; logarithmic.",
        "profiles": "The shipped profiles.",
    }
    return render_page("front.html.j2", context, shown, **captions)


def _draw(found: FrontRecord) -> bytes:
    from sparsity_search.report import plots

    removal = next(iter(found.runs.values())).removal
    return plots.encode_png(plots.draw_perplexity(_list_curves(found), removal))


def _list_curves(found: FrontRecord) -> dict[str, dict[str, list[SeedRange]]]:
    """Return the perplexity of shipped and uniform profiles, by pruner."""
    curves: dict[str, dict[str, list[SeedRange]]] = {}
    for record in found.runs.values():
        rows = (record.results or {})["rows"]
        shipped = find_shipped_name(record.results)
        chosen = next(row for row in rows if row["name"] == shipped)
        spec = chosen.get("pruner") or {"name": record.config["pruner"]["name"]}
        lines = curves.setdefault(describe_pruner(spec), {})
        uniform = find_uniform(rows, chosen)
        for name, row in {"uniform": uniform, "searched": chosen}.items():
            value = row.get("perplexity")
            if value and (name == "uniform" or row is not uniform):
                point = SeedRange(_get_removed(row), value, value, value)
                lines.setdefault(name, []).append(point)
    return curves


def _get_removed(row: Mapping[str, Any]) -> float:
    return float(row.get("saving", row["sparsity"]))


def _get_key(row: Mapping[str, Any]) -> str:
    return f"{row['run']}/{row['name']}"
