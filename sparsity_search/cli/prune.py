"""`prune`: a model pruned to a profile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsity_search.cli import options
from sparsity_search.errors import ConfigError


@options.takes(
    options.MODEL,
    options.SPARSITY,
    options.PRUNER,
    options.PATTERN,
    options.CALIBRATION,
    options.BOUNDS,
    options.RECOVERY,
    replace(options.MINUTES, kind=options.RecoverMinutes),
    options.SEED,
    *options.LOADING,
    *options.CONFIGURATION,
)
def prune(
    given: options.Given,
    out: options.OutFolder,
    profile: Annotated[Path | None, typer.Option(help="A profile.json.")] = None,
    materialise: Annotated[
        bool, typer.Option("--materialise", help="Leave removed structures out of the checkpoint.")
    ] = False,
    multiple_of: Annotated[
        int, typer.Option(help="Materialised feed-forward widths are multiples of this.")
    ] = 32,
    push_to_hub: options.PushToHub = None,
) -> options.Result:
    """Prune a model block by block to a profile, or uniformly, and write a checkpoint.

    sparsity-search prune smollm2 --profile profile.json --pruner sparsegpt --out pruned

    sparsity-search prune smollm2 --pruner flap --sparsity 0.2 --materialise --out smaller
    """
    config = given.load()
    options.check_push(push_to_hub)
    from sparsity_search.cli import terminal
    from sparsity_search.workflow.prune import find_units
    from sparsity_search.workflow.prune import prune as run
    from sparsity_search.workflow.recover import check_recovery, recover_in_place

    multiple, minutes = multiple_of if materialise else None, config.study.minutes
    asked = given.values["recover"] is not None
    if asked:
        check_recovery(config, find_units(config, profile))
    elif minutes is not None:
        raise ConfigError("--minutes is the time of a recovery: give --recover too")
    with terminal.watch() as monitor:
        found = run(config, out, profile=profile, multiple=multiple, monitor=monitor)
        removed, weights = found.profile.n_removed, found.profile.layout.n_weights
        terminal.say(f"{out}: {removed} of {weights} weights are removed; {found.types}")
        if found.notes:
            file = out / "profile.json"
            terminal.say(f"{len(found.notes)} notes in {file}, first {found.notes[0]}")
        if found.materialised is not None:
            terminal.say(_describe(found.materialised))
        recovered = None
        if asked:
            recovered = recover_in_place(config, out, minutes=minutes, monitor=monitor)
    if recovered is not None:
        terminal.show_recovery(recovered)
    address = terminal.push(out, push_to_hub)
    return {
        "checkpoint": out,
        "hub": address,
        "recovery": recovered and terminal.describe_recovery(recovered),
        **options.count_removed(found.profile),
        "notes": found.notes,
        "materialised": found.materialised,
    }


def _describe(facts: dict[str, Any]) -> str:
    """Return the change from the dense to the materialised model, for people."""

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
