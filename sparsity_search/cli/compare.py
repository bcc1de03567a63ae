"""`compare`: many allocators under equal conditions, in one table."""

from __future__ import annotations

import sys
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


def compare(
    model: options.Model,
    allocators: Annotated[
        str, typer.Option(help="Names, e.g. owl,knapsack; settings as 'owl[m=7;spread=0.2]'.")
    ],
    sparsity: Annotated[str, typer.Option(help="Fractions to remove, e.g. 0.5,0.6,0.7.")],
    out: Annotated[Path, typer.Option(help="Folder of the comparison; resumed if it exists.")],
    pruner: Annotated[
        str | None, typer.Option(help="Local pruners, e.g. wanda,sparsegpt; wanda by default.")
    ] = None,
    pattern: options.Pattern = None,
    final_text: Annotated[
        str | None, typer.Option("--text", help="Text for perplexity; see --calibration.")
    ] = None,
    calibration: options.Calibration = None,
    seeds: Annotated[int, typer.Option(help="Seeds, each with calibration text of its own.")] = 1,
    seed: Annotated[int | None, typer.Option(help="The first seed.")] = None,
    bounds: options.Bounds = None,
    exclude: options.Exclude = None,
    blocks: options.Blocks = None,
    units: options.Units = None,
    revision: options.Revision = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    offload: options.Offload = False,
    trust_remote_code: options.TrustRemoteCode = False,
    config: options.Config = None,
    set_: options.Set = None,
) -> None:
    """Prune a model with the profiles of many allocators, and compare their perplexity.

    Run it again to go on where it was stopped; allocators, pruners, sparsities and seeds may be
    added then.

    sparsity-search compare smollm2 --allocators owl,knapsack --sparsity 0.6,0.7 --out compared
    """
    given = {**locals(), "sparsity": None}
    from sparsity_search.cli.solve import parse_sparsities
    from sparsity_search.engine.cases import Plan, split

    configuration = options.configuration({**given, "pruner": None})
    sections = {
        name: options.configuration({**given, "pruner": name}).pruner
        for name in split(pruner or "")
    }
    sections = sections or {configuration.pruner.name: configuration.pruner}
    plan = Plan(
        config=configuration,
        allocators=tuple(split(allocators)),
        pruners=sections,
        sparsities=tuple(parse_sparsities(sparsity)),
        seeds=seeds,
    )
    from rich.console import Console
    from rich.markup import escape

    from sparsity_search.cli.terminal import TerminalMonitor, quiet_libraries
    from sparsity_search.cli.terminal import out as console
    from sparsity_search.cli.terminal import table as text_table
    from sparsity_search.report.comparison import (
        HEADER,
        ComparisonRecord,
        failure_lines,
        summary,
        table_rows,
    )
    from sparsity_search.workflow.compare import compare as run

    quiet_libraries()
    with TerminalMonitor() as monitor:
        run(plan, out, command=sys.argv, monitor=monitor)
    record = ComparisonRecord.read(out)
    shown = [HEADER.index(column) for column in COLUMNS]
    rows = [[escape(row[i]) for i in shown] for row in table_rows(record)]
    wide = Console(highlight=False, width=max(console.width, WIDTH))
    wide.print(text_table(COLUMNS, rows, left=3))
    lines = [summary(record), *failure_lines(record)]
    if (page := out / "report.html").exists():
        lines.append(f"report: {page}")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
