"""`sensitivity`: what every unit loses at every level."""

from __future__ import annotations

from typing import Annotated

import typer

from sparsity_search.cli import options


def sensitivity(
    model: options.Model,
    out: options.Out,
    sensitivity: Annotated[str | None, typer.Option(help="See `ls sensitivities`.")] = None,
    pruner: options.Pruner = None,
    pattern: options.Pattern = None,
    calibration: options.Calibration = None,
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
    """Measure once what each unit loses; `solve` then finds the profile for any sparsity.

    sparsity-search sensitivity smollm2 --pruner wanda --out scores.json

    sparsity-search solve scores.json --sparsity 0.7 --out profile.json
    """
    configuration = options.configuration(locals())
    from sparsity_search.cli.terminal import TerminalMonitor, quiet_libraries
    from sparsity_search.cli.terminal import out as console
    from sparsity_search.workflow.sensitivity import sensitivity as run

    quiet_libraries()
    with TerminalMonitor() as monitor:
        scores = run(configuration, out, monitor=monitor)
    levels = sum(map(len, scores.counts))
    console.print(f"{out}: losses of {len(scores.layout)} units at {levels} levels in all")
