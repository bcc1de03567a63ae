"""`predictor`: what a search's measurements teach, for other searches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def predictor(
    run_dir: Annotated[Path, typer.Argument(help="A run directory.")],
    out: Annotated[
        Path | None, typer.Option(help="Write the data set here; with xgboost the model too.")
    ] = None,
    model: Annotated[str, typer.Option(help="ridge, xgboost or sklearn.")] = "ridge",
    objective: Annotated[str, typer.Option(help="Of xgboost: regression or rank.")] = "regression",
    storage: Annotated[
        str | None, typer.Option(help="URL of the run's storage, if it has a password.")
    ] = None,
) -> None:
    """Print how well a run's scores can be predicted, and write its data set.

    sparsity-search predictor runs/demo --out predictor.json

    A later search uses it: --searcher predictor --set searcher.dataset=predictor.json
    """
    from typing import Any, cast

    from sparsity_search.cli.terminal import out as console
    from sparsity_search.cli.terminal import table
    from sparsity_search.searchers.bases.models import ModelSettings
    from sparsity_search.workflow.predictor import learn

    settings = ModelSettings(model=cast(Any, model), objective=cast(Any, objective))
    found = learn(run_dir, settings, out, storage=storage)
    held_out = found.figures
    rows = [[str(r.round), f"{r.tau:.3f}", str(r.n)] for r in found.rounds]
    if rows:
        console.print(table(["round", "Kendall tau", "candidates"], rows))
    if found.importance:
        roles: dict[str, float] = {}
        for unit in found.dataset.layout:
            share = found.importance.get(unit.name, 0.0)
            roles[unit.role] = roles.get(unit.role, 0.0) + share
        gains = [[role, f"{share:.3f}"] for role, share in roles.items()]
        console.print(table(["role", "importance"], gains))
    error = f"MAE {held_out.mae:.4g}, " if settings.objective == "regression" else ""
    r2 = f"R2 {held_out.r2:.3f}, " if settings.objective == "regression" else ""
    console.print(
        f"{len(found.dataset)} pairs; of {held_out.n} held out: {r2}{error}"
        f"Kendall tau {held_out.tau:.3f}",
        soft_wrap=True,
    )
    if out is not None:
        console.print(f"data set: {out}", markup=False, soft_wrap=True)
