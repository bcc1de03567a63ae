"""`allocate`: a profile in one shot."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from sparsity_search.cli import options


@options.takes(
    options.MODEL,
    replace(options.SPARSITY, default=options.REQUIRED),
    options.PRUNER,
    options.CALIBRATION,
    options.BOUNDS,
    options.SEED,
    *options.LOADING,
    *options.CONFIGURATION,
)
def allocate(
    given: options.Given,
    out: options.OutFile,
    allocator: Annotated[str, typer.Option(help="See `ls allocators`.")] = "cfsp",
) -> options.Result:
    """Find a profile without a search and write it to a file.

    sparsity-search allocate smollm2 --allocator owl --sparsity 0.7 --out profile.json

    Hyper-parameters: --set allocators.owl.m=7
    """
    config = given.load()
    from sparsity_search.cli import terminal
    from sparsity_search.workflow.allocate import allocate as run

    with terminal.watch() as monitor:
        found = run(config, allocator, out, monitor=monitor)
    for note in found.notes:
        terminal.say(note)
    profile = found.profile
    terminal.say(f"{out}: {profile.n_removed} of {profile.layout.n_weights} weights removed")
    return {"profile": out, **options.count_removed(profile), "notes": found.notes}
