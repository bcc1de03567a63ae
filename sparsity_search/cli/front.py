"""`front`: one search for many budgets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from sparsity_search.cli import options


def front(
    model: options.Model,
    out: Annotated[Path, typer.Option(help="Folder of the runs; resumed if it exists.")],
    sparsity: Annotated[
        str | None, typer.Option(help="Fractions to remove, e.g. 0.5,0.6,0.7.")
    ] = None,
    saving: Annotated[str | None, typer.Option(help="In its place: fractions to save.")] = None,
    measure: options.Measure = None,
    space: Annotated[str | None, typer.Option(help="Name or YAML file; see `ls spaces`.")] = None,
    pruner: options.Pruner = None,
    pattern: options.Pattern = None,
    searcher: Annotated[str | None, typer.Option(help="See `ls searchers`.")] = None,
    initial: Annotated[
        str | None, typer.Option(help="Allocators to start from, e.g. owl,uniform.")
    ] = None,
    calibration: options.Calibration = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds for each budget.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Search time in all.")] = None,
    seed: options.Seed = None,
    bounds: options.Bounds = None,
    blocks: options.Blocks = None,
    units: options.Units = None,
    device: options.Device = None,
    offload: options.Offload = False,
    trust_remote_code: options.TrustRemoteCode = False,
    config: options.Config = None,
    set_: options.Set = None,
) -> None:
    """Search profiles for several budgets, each from the one before: a front.

    Run it again with the same options to go on where it was stopped.

    sparsity-search front smollm2 --sparsity 0.5,0.6,0.7 --minutes 30 --out runs/front
    """
    configuration = options.configuration({**locals(), "sparsity": None, "saving": None})
    from sparsity_search.cli.solve import parse_sparsities
    from sparsity_search.cli.terminal import TerminalMonitor, quiet_libraries
    from sparsity_search.cli.terminal import out as console
    from sparsity_search.cli.terminal import table as text_table
    from sparsity_search.errors import ConfigError
    from sparsity_search.report.front import Front
    from sparsity_search.report.table import number
    from sparsity_search.workflow.front import search_front

    if (sparsity is None) == (saving is None):
        raise ConfigError("give either --sparsity or --saving, e.g. --sparsity 0.5,0.6,0.7")
    of: Literal["sparsity", "saving"] = "saving" if sparsity is None else "sparsity"
    quiet_libraries()
    with TerminalMonitor() as monitor:
        search_front(
            configuration,
            parse_sparsities(sparsity or saving or ""),
            out,
            of=of,
            command=sys.argv,
            monitor=monitor,
        )
    found = Front.read(out)
    rows = [
        [
            row["name"],
            f"{row.get('saving', row['sparsity']):.2%}",
            number(row["score"]),
            number(row["perplexity"]),
            "on the front" if row["on_front"] else "",
        ]
        for row in found.rows
    ]
    console.print(text_table(("profile", of, "score", "perplexity", ""), rows))
    console.print(f"front: {out / 'front.json'}", markup=False, soft_wrap=True)
