"""`prune`: a model pruned to a profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sparsity_search.cli import options


def prune(
    model: options.Model,
    out: options.Out,
    profile: Annotated[Path | None, typer.Option(help="A profile.json.")] = None,
    sparsity: options.OptionalSparsity = None,
    materialise: Annotated[
        bool, typer.Option("--materialise", help="Leave removed structures out of the checkpoint.")
    ] = False,
    multiple_of: Annotated[
        int, typer.Option(help="Materialised feed-forward widths are multiples of this.")
    ] = 32,
    pruner: options.Pruner = None,
    pattern: options.Pattern = None,
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
    """Prune a model block by block to a profile, or uniformly, and write a checkpoint.

    sparsity-search prune smollm2 --profile profile.json --pruner sparsegpt --out pruned

    sparsity-search prune smollm2 --pruner flap --sparsity 0.2 --materialise --out smaller
    """
    configuration = options.configuration(locals())
    from sparsity_search.cli.terminal import TerminalMonitor, quiet_libraries
    from sparsity_search.cli.terminal import out as console
    from sparsity_search.workflow.prune import prune as run

    quiet_libraries()
    multiple = multiple_of if materialise else None
    with TerminalMonitor() as monitor:
        done = run(configuration, out, profile=profile, multiple=multiple, monitor=monitor)
    found = done.profile
    console.print(f"{out}: {found.n_removed} of {found.layout.n_weights} weights are removed")
    if done.notes:
        console.print(f"{len(done.notes)} notes in {out / 'profile.json'}, first {done.notes[0]}")
    if done.materialised is not None:
        console.print(_told(done.materialised))


def _told(facts: dict[str, Any]) -> str:
    """Return what became of a materialised model, for people."""

    def change(key: str, unit: str, scale: float = 1.0) -> str:
        dense, now = (facts[key][which] for which in ("dense", "materialised"))
        return f"{dense / scale:,.1f} to {now / scale:,.1f} {unit}"

    speed = [facts["tokens_per_second"][which]["median"] for which in ("dense", "materialised")]
    shape = "one width a block" if facts["one_width_a_block"] else "one width for all blocks"
    return (
        f"materialised with {shape}: {change('parameters', 'M parameters', 1e6)}, "
        f"{change('bytes', 'MB', 1e6)}, {speed[0]:.0f} to {speed[1]:.0f} tokens/s; "
        f"{facts['padding']:,} weights stay as zeros (padding)"
    )
