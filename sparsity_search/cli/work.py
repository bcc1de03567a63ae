"""`work`: one more worker of a search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsity_search.cli import options


def work(
    run_dir: Annotated[Path, typer.Argument(help="Directory of a search that has --workers.")],
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, ...")] = None,
    storage: options.RunStorage = None,
) -> options.Result:
    """Measure candidates of a search that runs already, here or on another machine.

    It ends with the stage that the search is in. `search --workers` starts its own.

    sparsity-search work runs/mine --device cuda:1
    """
    from sparsity_search.cli import terminal
    from sparsity_search.workflow.work import work as run

    with terminal.watch() as monitor:
        run(run_dir, device=device, storage=storage, monitor=monitor)
    return {"run": run_dir}
