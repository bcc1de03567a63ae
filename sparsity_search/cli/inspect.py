"""`inspect`: what can be pruned, and what a search would take."""

from __future__ import annotations

from typing import Annotated

import typer

from sparsity_search.cli import options


def inspect(
    model: options.Model,
    sparsity: options.OptionalSparsity = None,
    saving: options.Saving = None,
    space: Annotated[str | None, typer.Option(help="Name or YAML file; see `ls spaces`.")] = None,
    pruner: options.Pruner = None,
    pattern: options.Pattern = None,
    bounds: options.Bounds = None,
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
    """Print the prunable units, and an estimate of time, memory and disk for a search.

    sparsity-search inspect smollm2 --pruner sparsegpt
    """
    configuration = options.configuration(locals())
    from sparsity_search.cli.terminal import TerminalMonitor, quiet_libraries
    from sparsity_search.cli.terminal import out as console
    from sparsity_search.cli.terminal import table as text_table
    from sparsity_search.report.table import duration, integer
    from sparsity_search.workflow.inspect import inspect as run

    quiet_libraries()
    with TerminalMonitor() as monitor:
        found = run(configuration, monitor=monitor)
    layout, estimate = found.layout, found.estimate
    groups: dict[tuple[str, str], list[int]] = {}
    for unit in layout:
        matrix = " x ".join(map(str, found.shapes[unit.name]))
        shape = matrix if unit.cost == 1 else f"{unit.count} of {integer(unit.cost)}"
        groups.setdefault((unit.role, shape), []).append(unit.size)
    rows = [
        (role, shape, integer(len(sizes)), integer(sum(sizes)))
        for (role, shape), sizes in groups.items()
    ]
    console.print(text_table(("role", "shape", "units", "weights"), rows, left=2))
    console.print(
        f"prunable: {integer(layout.n_weights)} weights in {len(layout)} units of "
        f"{layout.n_blocks} blocks; {integer(int(layout.zeros.sum()))} are zero already"
    )
    console.print(f"left alone: {integer(sum(found.left_alone.values()))} weights")
    for tokens, seconds in estimate.evaluation_seconds.items():
        console.print(f"one evaluation on {tokens} tokens: {seconds:.2f} s")
    per_minutes = integer(round(600 / estimate.round_seconds))
    console.print(f"a round: {duration(estimate.round_seconds)}; {per_minutes} in 10 minutes")
    console.print(
        f"supernet: {duration(estimate.supernet_seconds)}, {_mib(estimate.supernet_bytes)} in "
        f"memory, or on disk with --set supernet.store=disk"
    )
    console.print(
        f"memory in all: {_mib(estimate.resident_bytes)} and what a forward pass takes; "
        f"checkpoint: {_mib(estimate.checkpoint_bytes)}"
    )


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:,.0f} MiB"
