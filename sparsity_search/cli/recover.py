"""`recover`: a pruned checkpoint whose kept weights are trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from sparsity_search.cli import options


@options.takes(
    replace(options.MODEL, name="checkpoint"),
    replace(options.RECOVERY, name="method"),
    options.MINUTES,
    options.CALIBRATION,
    options.FINAL_TEXT,
    options.SEED,
    *options.LOADING_SAME,
    *options.CONFIGURATION,
)
def recover(
    given: options.Given,
    out: options.OutFolder,
    dense: Annotated[
        str | None, typer.Option(help="The dense model; by default that of the profile.")
    ] = None,
    push_to_hub: options.PushToHub = None,
) -> options.Result:
    """Train what pruning kept; what it removed stays zero, exactly.

    Run it again with the same options to go on where it was stopped.

    sparsity-search recover runs/mine/checkpoint --minutes 20 --out recovered
    """
    config = given.load()
    options.check_push(push_to_hub)
    from sparsity_search.cli import terminal
    from sparsity_search.workflow.recover import recover as run

    with terminal.watch(minutes=config.study.minutes) as monitor:
        found = run(config, out, dense=dense, minutes=config.study.minutes, monitor=monitor)
    terminal.show_recovery(found)
    removed, weights = found.profile.n_removed, found.profile.layout.n_weights
    terminal.say(f"{out}: {removed} of {weights} weights are zero as before; {found.types}")
    address = terminal.push(out, push_to_hub)
    return {"checkpoint": out, "hub": address, **terminal.describe_recovery(found)}
