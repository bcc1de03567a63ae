"""`verify`: does a checkpoint have exactly the zeros that a profile says?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from sparsity_search.cli import options


@options.takes(replace(options.MODEL, name="checkpoint"), *options.LOADING, *options.CONFIGURATION)
def verify(
    given: options.Given, profile: Annotated[Path, typer.Option(help="A profile.json.")]
) -> None:
    """Check that a checkpoint's zeros are exactly those of a profile.

    sparsity-search verify runs/mine/checkpoint --profile runs/mine/profile.json
    """
    config = given.load()
    from sparsity_search.cli import terminal
    from sparsity_search.workflow.verify import verify as run

    with terminal.watch() as monitor:
        found = run(config, profile, monitor=monitor)
    terminal.say(
        f"{found.n_removed} of {found.layout.n_weights} weights are zero, "
        f"exactly as the profile says in each of {len(found.layout)} units"
    )
