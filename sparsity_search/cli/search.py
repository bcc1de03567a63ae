"""`search`: the main job."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsity_search.cli import options

if TYPE_CHECKING:
    from sparsity_search.config.schema import RunConfig
    from sparsity_search.engine.monitor import Monitor
    from sparsity_search.runs.directory import RunDirectory
    from sparsity_search.workflow.recover import RecoveryResult

#: Share of the time that is left for a recovery.
RECOVERY_SHARE = 0.4


@options.takes(
    options.MODEL,
    options.SPARSITY,
    options.MINUTES,
    options.CALIBRATION,
    options.PLAN,
    options.SAVING,
    options.MEASURE,
    options.SPACE,
    options.PATTERN,
    options.BOUNDS,
    options.PRUNER,
    options.FINALISE,
    options.RECOVERY,
    options.INITIAL,
    options.SEARCHER,
    options.HINTS,
    options.EVALUATOR,
    options.STAGES,
    options.ROUNDS,
    options.SEARCH_TEXT,
    options.FINAL_TEXT,
    options.SEED,
    options.STORAGE,
    options.WORKERS,
    *options.CONFIGURATION,
    *options.LOADING,
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
    push_to_hub: options.PushToHub = None,
    track: options.Track = None,
) -> options.Result:
    """Search a profile, compare it with others, and write a pruned checkpoint and a report.

    Run it again with the same options to go on where it was stopped.

    sparsity-search search smollm2 --sparsity 0.6 --minutes 10 --out runs/mine
    """
    config = given.load()
    options.check_push(push_to_hub)
    trackers = options.build_trackers(track)
    from sparsity_search.cli import terminal
    from sparsity_search.engine.plugins import build_pruner, choose_units
    from sparsity_search.engine.tracking import track as track_job
    from sparsity_search.report import RunRecord
    from sparsity_search.runs.directory import RunDirectory
    from sparsity_search.workflow.recover import check_recovery
    from sparsity_search.workflow.search import preview
    from sparsity_search.workflow.search import search as run

    recovers = given.values["recover"] is not None
    if recovers:
        check_recovery(config, choose_units(config, build_pruner(config)))
    out = out or _choose_folder(config)
    options.check_folder(out)
    directory, study = RunDirectory(out), config.study
    with terminal.watch(study.rounds, study.time_limit) as monitor:
        if dry_run:
            schedule = preview(config, directory.path, monitor)
            monitor.planned(schedule)
            return asdict(schedule)
        whole, config = config, _leave_time(config) if recovers else config
        with track_job(monitor, trackers, config, directory) as watched:
            run(config, directory.path, command=sys.argv, monitor=watched)
        goes_on = recovers and not monitor.stopped()
        recovered = _recover(whole, directory, monitor) if goes_on else None
        shipped = directory.recovered_folder if goes_on else directory.checkpoint_folder
        record = RunRecord.read(directory.path, study.storage)
        terminal.show_run(record)
        if recovered is not None:
            terminal.show_recovery(recovered)
        files = _list_files(directory) | ({"recovered": shipped} if goes_on else {})
        for what, path in files.items():
            terminal.say(f"{what + ':':<11} {path}")
        address = terminal.push(shipped, push_to_hub)
        terminal.show_next(_list_next(directory, shipped))
        return {
            **files,
            "hub": address,
            "recovery": recovered and terminal.describe_recovery(recovered),
            **terminal.describe_run(record),
        }


def _leave_time(config: RunConfig) -> RunConfig:
    """Return the configuration of a search that leaves time for a recovery."""
    limit = config.study.time_limit
    minutes = None if limit is None else limit * (1 - RECOVERY_SHARE)
    return config.model_copy(
        update={"study": config.study.model_copy(update={"minutes": minutes})}
    )


def _recover(
    config: RunConfig, directory: RunDirectory, monitor: Monitor
) -> RecoveryResult | None:
    """Recover the checkpoint of a search, beside it; None if it was before."""
    from sparsity_search.workflow.recover import recover_in_place

    limit, out = config.study.time_limit, directory.recovered_folder
    minutes = None if limit is None else limit * RECOVERY_SHARE
    checkpoint = directory.checkpoint_folder
    return recover_in_place(config, checkpoint, out, minutes=minutes, monitor=monitor)


def _list_files(directory: RunDirectory) -> dict[str, Path]:
    """Return what a search left, by name."""
    report = directory.report_file
    found = {"profile": directory.profile_file, "checkpoint": directory.checkpoint_folder}
    return found | ({"report": report} if report.exists() else {})


def _list_next(directory: RunDirectory, shipped: Path) -> dict[str, str]:
    """Return commands that may follow a search, by what they do."""
    checkpoint = shlex.quote(str(shipped))
    profile = shlex.quote(str(directory.profile_file))
    return {
        "check it": f"sparsity-search verify {checkpoint}",
        "score it": f"sparsity-search evaluate {checkpoint} --text file:FILE",
        "another budget": f"sparsity-search convert {profile} --sparsity S --out profile.json",
        "search on": "the same command with more --minutes",
        "load it": f"AutoModelForCausalLM.from_pretrained({str(shipped)!r})",
    }


def _choose_folder(config: RunConfig) -> Path:
    """Return ``runs/MODEL-SPARSITY``, with the pruner if it was named; or the saving."""
    path = Path(config.model.name)
    name = path.stem if path.suffix == ".gguf" else path.name
    budget = config.budget
    asked = budget.target if budget.saving is None else f"saving-{budget.saving}"
    pruner = config.pruner.name.rpartition(":")[2]
    parts = (name, pruner if "pruner" in config.model_fields_set else "", str(asked))
    return Path("runs") / "-".join(filter(None, parts))
