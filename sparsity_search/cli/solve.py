"""`solve`: profiles from measured losses, for any budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsity_search.cli import options
from sparsity_search.errors import ConfigError


def solve(
    scores: Annotated[Path, typer.Argument(help="Scores that `sensitivity` wrote.")],
    sparsity: Annotated[
        str, typer.Option(help="Fractions of all prunable weights to remove, e.g. 0.5,0.6,0.7.")
    ],
    out: Annotated[Path, typer.Option(help="The profile, or a folder for several.")],
    allocator: Annotated[str, typer.Option(help="knapsack, greedy or lagrangian.")] = "knapsack",
    bounds: options.Bounds = None,
    config: options.Config = None,
    set_: options.Set = None,
) -> None:
    """Find the profiles of least predicted loss from scores; no model is loaded.

    sparsity-search solve scores.json --sparsity 0.5,0.6,0.7 --out profiles

    Settings: --set allocators.knapsack.step=0.02
    """
    from sparsity_search.cli.terminal import TerminalMonitor
    from sparsity_search.cli.terminal import out as console
    from sparsity_search.config.load import load_config
    from sparsity_search.workflow.solve import solve as run

    given = {"model.name": str(scores), "budget.bounds": options.parse_bounds(bounds)}
    configuration = load_config(config, given, set_ or [])
    targets = parse_sparsities(sparsity)
    with TerminalMonitor() as monitor:
        found = run(configuration, allocator, scores, targets, out, monitor=monitor)
    for file, allocation in found.items():
        profile = allocation.profile
        told = "; ".join(allocation.notes)
        console.print(
            f"{file}: {profile.n_removed} of {profile.layout.n_weights} weights removed; {told}",
            markup=False,
            soft_wrap=True,
        )


def parse_sparsities(text: str) -> list[float]:
    """Return the numbers in a text that commas part.

    Raises:
        ConfigError: They are none.

    >>> parse_sparsities("0.5,0.7")
    [0.5, 0.7]
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--sparsity needs numbers like 0.5,0.6, not {text!r}") from error
