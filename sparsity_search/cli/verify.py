"""`verify`: does a checkpoint have exactly the zeros that a profile says?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsity_search.cli import options


def verify(
    checkpoint: options.Model,
    profile: Annotated[Path, typer.Option(help="A profile.json.")],
    exclude: options.Exclude = None,
    blocks: options.Blocks = None,
    offload: options.Offload = False,
    trust_remote_code: options.TrustRemoteCode = False,
    config: options.Config = None,
    set_: options.Set = None,
) -> None:
    """Check that a checkpoint's zeros are exactly those of a profile.

    sparsity-search verify runs/mine/checkpoint --profile runs/mine/profile.json
    """
    configuration = options.configuration(locals())
    from sparsity_search.cli.terminal import TerminalMonitor, quiet_libraries
    from sparsity_search.cli.terminal import out as console
    from sparsity_search.workflow.prune import verify as run

    quiet_libraries()
    with TerminalMonitor() as monitor:
        found = run(configuration, profile, monitor=monitor)
    console.print(
        f"{found.n_removed} of {found.layout.n_weights} weights are zero, "
        f"exactly as the profile says in each of {len(found.layout)} units"
    )
