"""`inspect`: the prunable units of a model, and an estimate of a search."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from sparsity_search.cli import options

if TYPE_CHECKING:
    from sparsity_search.engine.estimate import SearchEstimate
    from sparsity_search.models.anatomy.unpruned import UnprunedParameter
    from sparsity_search.workflow.inspect import InspectionResult


@options.takes(
    options.MODEL,
    options.SPARSITY,
    options.SAVING,
    options.SPACE,
    options.PRUNER,
    options.PATTERN,
    options.BOUNDS,
    *options.LOADING,
    *options.CONFIGURATION,
)
def inspect(given: options.Given) -> options.Result:
    """Print the prunable units, the other weights, and an estimate of a search.

    sparsity-search inspect smollm2 --pruner sparsegpt
    """
    config = given.load()
    from sparsity_search.cli import terminal
    from sparsity_search.report.table import format_integer
    from sparsity_search.workflow.inspect import inspect as run

    with terminal.watch() as monitor:
        found = run(config, monitor=monitor)
    layout = found.layout
    terminal.show_table(("role", "shape", "units", "weights"), _list_units(found), align="ll")
    terminal.say(
        f"prunable: {format_integer(layout.n_weights)} weights in {len(layout)} units of "
        f"{layout.n_blocks} blocks {found.blocks}; "
        f"{format_integer(int(layout.zeros.sum()))} are zero already"
    )
    reasons = _list_left_alone(found.left_alone)
    terminal.show_table(("left alone", "weights", "tensors", "the first"), reasons)
    for first, *others in found.shared:
        terminal.say(f"counted once: {first} is {', '.join(others)}")
    terminal.say(found.types)
    for line in _describe(found.estimate, on_disk=config.supernet.store == "disk"):
        terminal.say(line)
    return {
        "blocks": found.blocks,
        "units": len(layout),
        "weights": layout.n_weights,
        "zeros": int(layout.zeros.sum()),
        "left_alone": {entry.name: entry.weights for entry in found.left_alone},
        "shared": found.shared,
        **asdict(found.estimate),
    }


def _list_units(found: InspectionResult) -> list[tuple[str, str, str, str]]:
    """Return a row for each role and shape: both, units and weights."""
    from sparsity_search.report.table import format_integer

    groups: dict[tuple[str, str], list[int]] = {}
    for unit in found.layout:
        matrix = " x ".join(map(str, found.shapes[unit.name]))
        shape = matrix if unit.cost == 1 else f"{unit.count} of {format_integer(unit.cost)}"
        groups.setdefault((unit.role, shape), []).append(unit.size)
    return [
        (role, shape, format_integer(len(sizes)), format_integer(sum(sizes)))
        for (role, shape), sizes in groups.items()
    ]


def _list_left_alone(left: list[UnprunedParameter]) -> list[tuple[str, str, str, str]]:
    """Return a row for each reason: why, weights, tensors, and the first one's name."""
    from sparsity_search.report.table import format_integer

    reasons: dict[str, list[UnprunedParameter]] = {}
    for entry in left:
        reasons.setdefault(entry.why, []).append(entry)
    return [
        (why, format_integer(sum(e.weights for e in of)), format_integer(len(of)), of[0].name)
        for why, of in reasons.items()
    ]


def _describe(estimate: SearchEstimate, on_disk: bool) -> Iterator[str]:
    """Yield lines about time, memory and disk."""
    from sparsity_search.report.table import format_duration, format_integer

    for tokens, seconds in estimate.evaluation_seconds.items():
        yield f"one evaluation on {tokens} tokens: {seconds:.2f} s"
    per_minutes = format_integer(round(600 / estimate.round_seconds))
    yield f"a round: {format_duration(estimate.round_seconds)}; {per_minutes} in 10 minutes"
    where = "on disk" if on_disk else "in memory, or on disk with --set supernet.store=disk"
    size = _format_mib(estimate.supernet_bytes)
    yield f"supernet: {format_duration(estimate.supernet_seconds)}, {size} {where}"
    yield (
        f"memory: {_format_mib(estimate.build_bytes)} to build the supernet; "
        f"{_format_mib(estimate.search_bytes)} in the search, and what a forward pass takes"
    )
    if estimate.file_bytes:
        yield f"offloaded to temporary files (TMPDIR): {_format_mib(estimate.file_bytes)}"
    yield f"checkpoint: {_format_mib(estimate.checkpoint_bytes)}"


def _format_mib(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:,.0f} MiB"
