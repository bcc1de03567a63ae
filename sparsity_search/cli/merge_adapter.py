"""`merge-adapter`: an adapter of peft merged into a pruned checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from sparsity_search.cli import options


@options.takes(
    replace(options.MODEL, name="checkpoint"), *options.LOADING_SAME, *options.CONFIGURATION
)
def merge_adapter(
    given: options.Given,
    adapter: Annotated[Path, typer.Argument(help="Folder of the adapter.")],
    out: options.OutFolder,
    mask: Annotated[
        bool, typer.Option("--mask", help="Leave the change out where the checkpoint has zeros.")
    ] = False,
    push_to_hub: options.PushToHub = None,
) -> options.Result:
    """Merge an adapter of peft into a pruned checkpoint; its zeros stay.

    Adapters that were trained with `MaskKeeper` are merged exactly with --mask.

    sparsity-search merge-adapter runs/mine/checkpoint adapter --mask --out merged
    """
    config = given.load()
    options.check_push(push_to_hub)
    from sparsity_search.cli import terminal
    from sparsity_search.workflow.merge_adapter import merge_adapter as run

    with terminal.watch() as monitor:
        found = run(config, adapter, out, mask=mask, monitor=monitor)
    removed, weights = found.profile.n_removed, found.profile.layout.n_weights
    if found.filled:
        terminal.say(f"{found.dropped:.1%} of the squared change lay on zeros, and is left out")
    terminal.say(f"{out}: {removed} of {weights} weights are zero as before")
    address = terminal.push(out, push_to_hub)
    return {
        "checkpoint": out,
        "hub": address,
        **options.count_removed(found.profile),
        "filled": found.filled,
        "dropped": found.dropped,
    }
