"""`recommend`: which method and pruner fit the time there is."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsity_search.cli import options

if TYPE_CHECKING:
    from sparsity_search.plans.methods import Method
    from sparsity_search.workflow.recommend import Recommendation, TimedPruner

#: Options that the commands it prints take too.
_PASSED = ("calibration", "exclude", "blocks", "units", "revision", "dtype", "device", "config")


@options.takes(
    options.MODEL,
    replace(options.SPARSITY, default=0.7),
    options.PRUNER,
    options.CALIBRATION,
    options.BOUNDS,
    *options.LOADING,
    *options.CONFIGURATION,
)
def recommend(
    given: options.Given,
    minutes: Annotated[
        float, typer.Option(help="Time to find a profile, and again to prune to it.")
    ],
) -> options.Result:
    """Choose the method and the pruner of the best measured gain that fit the time.

    sparsity-search recommend smollm2 --minutes 5
    """
    config = given.load()
    from sparsity_search.cli import terminal
    from sparsity_search.report.table import NONE, format_duration
    from sparsity_search.workflow.recommend import recommend as run

    with terminal.watch() as monitor:
        found = run(config, minutes, monitor)
    rows = [
        (
            entry.method.name,
            format_duration(entry.seconds),
            NONE if entry.gain is None else f"{entry.gain.ratio:.3f}",
            NONE
            if entry.gain is None
            else f"{entry.gain.pruner} {entry.gain.sparsity:.0%}, {entry.gain.source}",
            "chosen" if entry is found.chosen else "",
        )
        for entry in found.methods
    ]
    terminal.show_table(("method", "time here", "÷ uniform", "measured with", ""), rows)
    terminal.say(found.why)
    best = found.choose_pruner(minutes)
    show_pruners(found, best)
    pruner = best.figure.pruner if best and not given.values["pruner"] else None
    commands = format_commands(found.chosen.method, {**given.values, "minutes": minutes}, pruner)
    for line in commands:
        terminal.say(line)
    return {
        "chosen": found.chosen.method.name,
        "why": found.why,
        "commands": commands,
        "methods": [
            {
                "name": entry.method.name,
                "seconds": entry.seconds,
                "gain": None if entry.gain is None else entry.gain.model_dump(),
            }
            for entry in found.methods
        ],
        "pruner": best and best.figure.pruner,
        "pruners": [{**asdict(entry.figure), "seconds": entry.seconds} for entry in found.pruners],
    }


def show_pruners(found: Recommendation, best: TimedPruner | None) -> None:
    """Print the pruners that are worth their time."""
    from sparsity_search.cli import terminal
    from sparsity_search.report.table import format_duration

    rows = [
        (
            entry.figure.pruner,
            format_duration(entry.seconds),
            f"{entry.figure.ratio:.3f}",
            f"{entry.figure.sparsity:.0%}, {entry.figure.source}",
            "chosen" if entry is best else "",
        )
        for entry in found.pruners
    ]
    terminal.show_table(("pruner", "time here", "÷ SparseGPT", "uniform, measured at", ""), rows)


def format_commands(
    method: Method, given: Mapping[str, Any], pruner: str | None = None
) -> list[str]:
    """Return the command lines that run a method.

    Args:
        method: A search, or an allocator.
        given: Options of `recommend` by parameter name.
        pruner: What an allocator's profile is pruned with, if the user named none.
    """
    name = "sparsity-search"
    model, budget = str(given["model"]), ["--sparsity", str(given["sparsity"])]
    shared, named = _format_shared(given), _format_option("pruner", given["pruner"])
    limits = [word for text in given["bounds"] or [] for word in ("--bounds", text)]
    if method.allocator is None:
        limits += ["--minutes", f"{given['minutes']:g}", "--out", "searched"]
        return [shlex.join([name, "search", model, *budget, *named, *shared, *limits])]
    # an allocator that prunes for its own use does so with the run's pruner
    run = ["--set", f"pruner.name={given['pruner']}"] if given["pruner"] else []
    chosen = ["--allocator", method.allocator, *budget, *run, *limits, "--out", "profile.json"]
    last = named or _format_option("pruner", pruner)
    profile = ["--profile", "profile.json", *last, "--out", "pruned"]
    return [
        shlex.join([name, "allocate", model, *chosen, *shared]),
        shlex.join([name, "prune", model, *profile, *shared]),
    ]


def _format_shared(given: Mapping[str, Any]) -> list[str]:
    words = [word for key in _PASSED for word in _format_option(key, given.get(key))]
    words += ["--offload"] if given.get("offload") else []
    words += ["--trust-remote-code"] if given["trust_remote_code"] else []
    return words + [word for text in given["set_"] or [] for word in ("--set", text)]


def _format_option(name: str, value: object) -> list[str]:
    return [] if value is None else [f"--{name}", str(value)]
