"""`inspect`: what can be pruned, and what a search would take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from sparsity_search.cli import options

if TYPE_CHECKING:
    from sparsity_search.models.anatomy.remainder import LeftAlone


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
    """Print the prunable units, what is left alone, and an estimate of what a search takes.

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
        f"{layout.n_blocks} blocks {found.blocks}; "
        f"{integer(int(layout.zeros.sum()))} are zero already"
    )
    alone = _by_reason(found.left_alone)
    console.print(text_table(("left alone", "weights", "tensors", "the first"), alone))
    for first, *others in found.shared:
        console.print(f"counted once: {first} is {', '.join(others)}", markup=False)
    console.print(f"loaded as {found.loaded}")
    for tokens, seconds in estimate.evaluation_seconds.items():
        console.print(f"one evaluation on {tokens} tokens: {seconds:.2f} s")
    per_minutes = integer(round(600 / estimate.round_seconds))
    console.print(f"a round: {duration(estimate.round_seconds)}; {per_minutes} in 10 minutes")
    where = configuration.supernet.store
    other = "" if where == "disk" else ", or on disk with --set supernet.store=disk"
    console.print(
        f"supernet: {duration(estimate.supernet_seconds)}, {_mib(estimate.supernet_bytes)} "
        f"{'on disk' if where == 'disk' else 'in memory'}{other}"
    )
    console.print(
        f"memory: {_mib(estimate.build_bytes)} to build the supernet; "
        f"{_mib(estimate.search_bytes)} in the search, and what a forward pass takes"
    )
    if estimate.file_bytes:
        console.print(f"offloaded to temporary files (TMPDIR): {_mib(estimate.file_bytes)}")
    console.print(f"checkpoint: {_mib(estimate.checkpoint_bytes)}")


def _by_reason(left: Sequence[LeftAlone]) -> list[tuple[str, str, str, str]]:
    """Return a row for each reason: what, weights, tensors, and the first one's name."""
    from sparsity_search.report.table import integer

    reasons: dict[str, list[LeftAlone]] = {}
    for entry in left:
        reasons.setdefault(entry.why, []).append(entry)
    return [
        (why, integer(sum(e.weights for e in of)), integer(len(of)), of[0].name)
        for why, of in reasons.items()
    ]


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:,.0f} MiB"
