"""`solve`: profiles from measured losses, for any budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsity_search.cli import options


@options.takes(options.BOUNDS, *options.CONFIGURATION)
def solve(
    given: options.Given,
    scores: Annotated[Path, typer.Argument(help="Scores that `sensitivity` wrote.")],
    sparsity: Annotated[
        str, typer.Option(help="Fractions of all prunable weights to remove, e.g. 0.5,0.6,0.7.")
    ],
    out: Annotated[
        Path,
        typer.Option(help="The profile, or a folder for several.", callback=options.check_out),
    ],
    allocator: Annotated[str, typer.Option(help="knapsack, greedy or lagrangian.")] = "knapsack",
) -> options.Result:
    """Find the profiles of least predicted loss from scores; no model is loaded.

    sparsity-search solve scores.json --sparsity 0.5,0.6,0.7 --out profiles

    Settings: --set allocators.knapsack.step=0.02
    """
    config = given.load({"model.name": str(scores)})
    targets = options.parse_fractions(sparsity)
    from sparsity_search.cli import terminal
    from sparsity_search.workflow.solve import solve as run

    with terminal.TerminalMonitor() as monitor:
        found = run(config, allocator, scores, targets, out, monitor=monitor)
    for file, allocation in found.items():
        profile = allocation.profile
        terminal.say(
            f"{file}: {profile.n_removed} of {profile.layout.n_weights} weights removed; "
            f"{'; '.join(allocation.notes)}"
        )
    return {
        "profiles": [
            {
                "profile": file,
                **options.count_removed(allocation.profile),
                "notes": allocation.notes,
            }
            for file, allocation in found.items()
        ]
    }
