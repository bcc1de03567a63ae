"""`verify`: is a checkpoint as it was saved, with exactly the zeros that a profile says?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from sparsity_search.cli import options


@options.takes(replace(options.MODEL, name="checkpoint"), *options.LOADING, *options.CONFIGURATION)
def verify(
    given: options.Given,
    profile: Annotated[
        Path | None,
        typer.Option(help="A profile.json; by default that in the checkpoint or next to it."),
    ] = None,
) -> options.Result:
    """Check that a checkpoint is as it was saved, with exactly the zeros of its profile.

    sparsity-search verify runs/mine/checkpoint
    """
    config = given.load()
    from sparsity_search.cli import terminal
    from sparsity_search.workflow.verify import verify as run

    with terminal.watch() as monitor:
        found = run(config, profile, monitor=monitor)
    held = found.profile
    terminal.say(
        f"{held.n_removed} of {held.layout.n_weights} weights are zero, "
        f"exactly as the profile says in each of {len(held.layout)} units"
    )
    terminal.say(
        "no checksums are kept with this checkpoint: its tensors were not compared"
        if found.tensors is None
        else f"all {found.tensors} tensors are as they were saved"
    )
    return {**options.count_removed(held), "units": len(held.layout), "tensors": found.tensors}
