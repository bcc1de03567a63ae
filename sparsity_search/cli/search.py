"""`search`: the main job."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsity_search.cli import options

if TYPE_CHECKING:
    from sparsity_search.config.schema import RunConfig


@options.takes(
    options.MODEL,
    options.SPARSITY,
    options.SAVING,
    options.PLAN,
    options.MEASURE,
    options.SPACE,
    options.PRUNER,
    options.PATTERN,
    options.SEARCHER,
    options.EVALUATOR,
    options.INITIAL,
    options.HINTS,
    options.FINALISE,
    options.CALIBRATION,
    options.SEARCH_TEXT,
    options.FINAL_TEXT,
    options.STAGES,
    options.ROUNDS,
    options.MINUTES,
    options.SEED,
    options.STORAGE,
    options.WORKERS,
    options.BOUNDS,
    *options.LOADING,
    *options.CONFIGURATION,
)
def search(
    given: options.Given,
    out: Annotated[
        Path | None,
        typer.Option(help="Run directory; resumed if it exists.", callback=options.check_folder),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan with its times, and end.")
    ] = False,
) -> None:
    """Search a profile, compare it with others, and write a pruned checkpoint and a report.

    Run it again with the same options to go on where it was stopped.

    sparsity-search search smollm2 --sparsity 0.6 --minutes 10 --out runs/mine
    """
    config = given.load()
    from sparsity_search.cli import terminal
    from sparsity_search.report import RunRecord
    from sparsity_search.runs.directory import RunDirectory
    from sparsity_search.workflow.search import preview
    from sparsity_search.workflow.search import search as run

    out = out or _choose_folder(config)
    options.check_folder(out)
    directory, study = RunDirectory(out), config.study
    with terminal.watch(study.rounds, study.time_limit) as monitor:
        if dry_run:
            monitor.planned(preview(config, directory.path, monitor))
            return
        run(config, directory.path, command=sys.argv, monitor=monitor)
        record = RunRecord.read(directory.path, study.storage)
        terminal.show_run(record)
        terminal.say(f"checkpoint: {directory.checkpoint_folder}")
        if directory.report_file.exists():
            terminal.say(f"report:     {directory.report_file}")


def _choose_folder(config: RunConfig) -> Path:
    """Return ``runs/MODEL-SPARSITY``, with the pruner if it was named; or the saving."""
    path = Path(config.model.name)
    name = path.stem if path.suffix == ".gguf" else path.name
    budget = config.budget
    asked = budget.target if budget.saving is None else f"saving-{budget.saving}"
    pruner = config.pruner.name.rpartition(":")[2]
    parts = (name, pruner if "pruner" in config.model_fields_set else "", str(asked))
    return Path("runs") / "-".join(filter(None, parts))
