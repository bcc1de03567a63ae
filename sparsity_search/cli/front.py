"""`front`: one search for many budgets."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from sparsity_search.cli import options
from sparsity_search.errors import ConfigError

_ROUNDS = Annotated[int | None, typer.Option(help="Rounds for each budget.")]
_MINUTES = Annotated[float | None, typer.Option(help="Search time in all.")]


@options.takes(
    options.MODEL,
    options.MEASURE,
    options.SPACE,
    options.PRUNER,
    options.PATTERN,
    options.SEARCHER,
    options.INITIAL,
    options.CALIBRATION,
    replace(options.ROUNDS, kind=_ROUNDS),
    replace(options.MINUTES, kind=_MINUTES),
    options.SEED,
    options.STORAGE,
    options.BOUNDS,
    *options.LOADING,
    *options.CONFIGURATION,
)
def front(
    given: options.Given,
    out: Annotated[
        Path,
        typer.Option(
            help="Folder of the runs; resumed if it exists.", callback=options.check_folder
        ),
    ],
    sparsity: Annotated[
        str | None, typer.Option(help="Fractions to remove, e.g. 0.5,0.6,0.7.")
    ] = None,
    saving: Annotated[str | None, typer.Option(help="In its place: fractions to save.")] = None,
) -> options.Result:
    """Search profiles for several budgets, each from the one before: a front.

    Run it again with the same options to go on where it was stopped.

    sparsity-search front smollm2 --sparsity 0.5,0.6,0.7 --minutes 30 --out runs/front
    """
    config = given.load()
    if (sparsity is None) == (saving is None):
        raise ConfigError("give either --sparsity or --saving, e.g. --sparsity 0.5,0.6,0.7")
    of: Literal["sparsity", "saving"] = "saving" if sparsity is None else "sparsity"
    targets = options.parse_fractions(sparsity or saving or "")
    from sparsity_search.cli import terminal
    from sparsity_search.report.front import FRONT, FRONT_PAGE, FrontRecord
    from sparsity_search.report.table import format_number
    from sparsity_search.workflow.front import search_front

    with terminal.watch() as monitor:
        search_front(config, targets, out, of=of, command=sys.argv, monitor=monitor)
    found = FrontRecord.read(out, config.study.storage).rows
    rows = [
        [
            row["name"],
            f"{row.get('saving', row['sparsity']):.2%}",
            format_number(row["score"]),
            format_number(row["perplexity"]),
            "on the front" if row["on_front"] else "",
        ]
        for row in found
    ]
    terminal.show_table(("profile", of, "score", "perplexity", ""), rows)
    page = out / FRONT_PAGE
    terminal.say(f"front: {page if page.exists() else out / FRONT}")
    return {"front": out / FRONT, "rows": found}
