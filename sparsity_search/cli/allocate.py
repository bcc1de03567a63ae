"""`allocate`: a profile in one shot."""

from __future__ import annotations

from typing import Annotated

import typer

from sparsity_search.cli import options


def allocate(
    model: options.Model,
    allocator: Annotated[str, typer.Option(help="See `ls allocators`.")],
    sparsity: options.Sparsity,
    out: options.Out,
    pruner: options.Pruner = None,
    calibration: options.Calibration = None,
    bounds: options.Bounds = None,
    seed: options.Seed = None,
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
    """Find a profile without a search and write it to a file.

    sparsity-search allocate smollm2 --allocator owl --sparsity 0.7 --out profile.json

    Hyper-parameters: --set allocators.owl.m=7
    """
    configuration = options.configuration(locals())
    from sparsity_search.cli.terminal import TerminalMonitor, quiet_libraries
    from sparsity_search.cli.terminal import out as console
    from sparsity_search.workflow.allocate import allocate as run

    quiet_libraries()
    with TerminalMonitor() as monitor:
        found = run(configuration, allocator, out, monitor=monitor)
    profile = found.profile
    for note in found.notes:
        console.print(note, markup=False)
    console.print(f"{out}: {profile.n_removed} of {profile.layout.n_weights} weights removed")
