"""`prune`: a model pruned to a profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsity_search.cli import options


def prune(
    model: options.Model,
    out: options.Out,
    profile: Annotated[Path | None, typer.Option(help="A profile.json.")] = None,
    sparsity: options.OptionalSparsity = None,
    pruner: options.Pruner = None,
    calibration: options.Calibration = None,
    bounds: options.Bounds = None,
    seed: options.Seed = None,
    exclude: options.Exclude = None,
    units: options.Units = None,
    revision: options.Revision = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    config: options.Config = None,
    set_: options.Set = None,
) -> None:
    """Prune a model block by block to a profile, or uniformly, and write a checkpoint.

    sparsity-search prune smollm2 --profile profile.json --pruner sparsegpt --out pruned
    """
    configuration = options.configuration(locals())
    from sparsity_search.cli.terminal import TerminalMonitor, quiet_libraries
    from sparsity_search.cli.terminal import out as console
    from sparsity_search.workflow.prune import prune as run

    quiet_libraries()
    with TerminalMonitor() as monitor:
        done = run(configuration, out, profile=profile, monitor=monitor)
    console.print(f"{out}: {done.n_removed} of {done.layout.n_weights} weights are zero")
