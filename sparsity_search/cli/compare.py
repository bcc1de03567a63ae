"""`compare`: many allocators under equal conditions, in one table."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from sparsity_search.cli import options

#: The columns that a terminal shows; the files have all.
COLUMNS = (
    *("pruner", "sparsity", "allocator", "perplexity", "÷ uniform", "over seeds"),
    *("allocation", "passes"),
)
#: Least width of the table: a row that wraps is hard to read.
WIDTH = 110

_PRUNERS = Annotated[
    str | None, typer.Option(help="Local pruners, e.g. wanda,sparsegpt; wanda by default.")
]
_TEXT = Annotated[
    str | None, typer.Option("--text", help="Text for perplexity; see --calibration.")
]
_SEED = Annotated[int | None, typer.Option(help="The first seed.")]


@options.takes(
    options.MODEL,
    replace(options.PRUNER, kind=_PRUNERS),
    options.PATTERN,
    replace(options.FINAL_TEXT, kind=_TEXT),
    options.CALIBRATION,
    replace(options.SEED, kind=_SEED),
    options.BOUNDS,
    *options.LOADING,
    *options.CONFIGURATION,
)
def compare(
    given: options.Given,
    allocators: Annotated[
        str, typer.Option(help="Names, e.g. owl,knapsack; settings as 'owl[m=7;spread=0.2]'.")
    ],
    sparsity: Annotated[str, typer.Option(help="Fractions to remove, e.g. 0.5,0.6,0.7.")],
    out: Annotated[
        Path,
        typer.Option(
            help="Folder of the comparison; resumed if it exists.", callback=options.check_folder
        ),
    ],
    seeds: Annotated[int, typer.Option(help="Seeds, each with calibration text of its own.")] = 1,
) -> options.Result:
    """Prune a model with the profiles of many allocators, and compare their perplexity.

    Run it again to go on where it was stopped; allocators, pruners, sparsities and seeds may be
    added then.

    sparsity-search compare smollm2 --allocators owl,knapsack --sparsity 0.6,0.7 --out compared
    """
    from sparsity_search.workflow.compare.cases import Plan, split_list

    config = given.load({"pruner.name": None})
    names = split_list(given.values["pruner"] or "")
    pruners = {name: given.load({"pruner.name": name}).pruner for name in names}
    plan = Plan(
        config=config,
        allocators=tuple(split_list(allocators)),
        pruners=pruners or {config.pruner.name: config.pruner},
        sparsities=tuple(options.parse_fractions(sparsity)),
        seeds=seeds,
    )
    from sparsity_search.cli import terminal
    from sparsity_search.report import comparison
    from sparsity_search.runs.comparison import ComparisonRecord
    from sparsity_search.workflow.compare import compare as run

    with terminal.watch() as monitor:
        run(plan, out, command=sys.argv, monitor=monitor)
    record = ComparisonRecord.read(out)
    shown = [comparison.HEADER.index(column) for column in COLUMNS]
    rows = [[row[i] for i in shown] for row in comparison.list_rows(record)]
    terminal.show_table(COLUMNS, rows, align="lll", width=WIDTH)
    lines = [comparison.summarise(record), *comparison.list_failures(record)]
    if (page := record.folder.report_file).exists():
        lines.append(f"report: {page}")
    for line in lines:
        terminal.say(line)
    return {"folder": out, "rows": record.rows}
