"""`search`: the main job."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsity_search.cli import options

if TYPE_CHECKING:
    from sparsity_search.config.schema import RunConfig


def search(
    model: options.Model,
    sparsity: options.OptionalSparsity = None,
    saving: options.Saving = None,
    measure: options.Measure = None,
    space: Annotated[str | None, typer.Option(help="Name or YAML file; see `ls spaces`.")] = None,
    pruner: options.Pruner = None,
    pattern: options.Pattern = None,
    searcher: Annotated[str | None, typer.Option(help="See `ls searchers`.")] = None,
    evaluator: Annotated[str | None, typer.Option(help="See `ls evaluators`.")] = None,
    initial: Annotated[
        str | None, typer.Option(help="Allocators to start from, e.g. owl,uniform.")
    ] = None,
    hints: Annotated[
        str | None,
        typer.Option(help="Advice: gradients, sensitivities (`ls sensitivities`), scores files."),
    ] = None,
    finalise: Annotated[
        str | None, typer.Option(help="Pruner to rebuild with at the end; that of the search.")
    ] = None,
    calibration: options.Calibration = None,
    search_text: Annotated[str | None, typer.Option(help="Text to score candidates on.")] = None,
    final_text: Annotated[str | None, typer.Option(help="Text of the final comparison.")] = None,
    stages: Annotated[
        int | None, typer.Option(help="Coarse to fine: each stage has half the step.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds of each stage.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Search time; 10 by default.")] = None,
    seed: options.Seed = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; resumed if it exists.")] = None,
    storage: Annotated[str | None, typer.Option(help="URL of an Optuna storage.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that measure, e.g. one for each GPU.")
    ] = None,
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
    """Search a profile, compare it with others, and write a pruned checkpoint and a report.

    Run it again with the same options to go on where it was stopped.

    sparsity-search search smollm2 --sparsity 0.6 --minutes 10 --out runs/mine
    """
    configuration = options.configuration(locals())
    from sparsity_search.cli.terminal import TerminalMonitor, quiet_libraries
    from sparsity_search.cli.terminal import out as console
    from sparsity_search.cli.terminal import table as text_table
    from sparsity_search.report import RunRecord
    from sparsity_search.report.table import header, rows, summary
    from sparsity_search.runs.directory import RunDirectory
    from sparsity_search.workflow.search import search as run

    quiet_libraries()
    folder = out or _default_folder(configuration)
    study = configuration.study
    with TerminalMonitor(study.rounds, study.time_limit) as monitor:
        run(configuration, folder, command=sys.argv, monitor=monitor)
    record = RunRecord.read(folder, study.storage)
    console.print(text_table(header(record), rows(record)))
    console.print(summary(record))
    left = RunDirectory(folder)
    console.print(f"checkpoint: {left.checkpoint}\nreport:     {left.report_file}")


def _default_folder(config: RunConfig) -> Path:
    """Return ``runs/MODEL-PRUNER-SPARSITY``, or the saving in place of the sparsity."""
    path = Path(config.model.name)
    name = path.stem if path.suffix == ".gguf" else path.name
    budget = config.budget
    asked = budget.target if budget.saving is None else f"saving-{budget.saving}"
    return Path("runs") / f"{name}-{config.pruner.name.rpartition(':')[2]}-{asked}"
