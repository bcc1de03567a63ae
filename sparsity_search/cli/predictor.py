"""`predictor`: a data set from a search's measurements, for other searches."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from sparsity_search.cli import options

if TYPE_CHECKING:
    from sparsity_search.workflow.predictor import PredictorReport


def predictor(
    run_dir: options.RunDir,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write the data set here; with xgboost the model too.",
            callback=options.check_file,
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="ridge, xgboost or sklearn.")] = "ridge",
    objective: Annotated[str, typer.Option(help="Of xgboost: regression or rank.")] = "regression",
    storage: options.RunStorage = None,
) -> options.Result:
    """Print how well a run's scores can be predicted, and write its data set.

    sparsity-search predictor runs/demo --out predictor.json

    A later search uses it: --searcher predictor --set searcher.dataset=predictor.json
    """
    from sparsity_search.cli import terminal
    from sparsity_search.searchers.bases.models import ModelSettings
    from sparsity_search.workflow.predictor import learn

    settings = ModelSettings(model=cast(Any, model), objective=cast(Any, objective))
    found = learn(run_dir, settings, out, storage=storage)
    held_out = found.figures
    if rows := [[str(r.round), f"{r.tau:.3f}", str(r.n)] for r in found.rounds]:
        terminal.show_table(["round", "Kendall tau", "candidates"], rows)
    if found.importance:
        terminal.show_table(["role", "importance"], _sum_by_role(found))
    errors = ""
    if settings.objective == "regression":
        errors = f"R2 {held_out.r2:.3f}, MAE {held_out.mae:.4g}, "
    terminal.say(
        f"{len(found.dataset)} pairs; of {held_out.n} held out: {errors}"
        f"Kendall tau {held_out.tau:.3f}"
    )
    if out is not None:
        terminal.say(f"data set: {out}")
    return {
        "dataset": out,
        "pairs": len(found.dataset),
        "held_out": asdict(held_out),
        "rounds": [asdict(r) for r in found.rounds],
        "importance": found.importance,
    }


def _sum_by_role(found: PredictorReport) -> list[list[str]]:
    """Return the importance of each role: the sum over its units."""
    roles: dict[str, float] = {}
    for unit in found.dataset.layout:
        roles[unit.role] = roles.get(unit.role, 0.0) + found.importance.get(unit.name, 0.0)
    return [[role, f"{share:.3f}"] for role, share in roles.items()]
