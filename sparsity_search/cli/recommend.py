"""`recommend`: which method fits the time there is."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsity_search.cli import options

if TYPE_CHECKING:
    from sparsity_search.workflow.recommend import Method

#: Options that the commands it prints take too.
_PASSED = ("calibration", "exclude", "blocks", "units", "revision", "dtype", "device", "config")


def recommend(
    model: options.Model,
    minutes: Annotated[float, typer.Option(help="Time to find a profile; pruning comes after.")],
    sparsity: options.Sparsity = 0.7,
    pruner: options.Pruner = None,
    calibration: options.Calibration = None,
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
    """Choose the method of the best measured gain that fits the time, and say how to run it.

    sparsity-search recommend smollm2 --minutes 5
    """
    given = locals()
    configuration = options.configuration({**given, "minutes": None})
    from sparsity_search.cli.terminal import TerminalMonitor, quiet_libraries
    from sparsity_search.cli.terminal import out as console
    from sparsity_search.cli.terminal import table as text_table
    from sparsity_search.report.table import NONE, duration
    from sparsity_search.workflow.recommend import recommend as run

    quiet_libraries()
    with TerminalMonitor() as monitor:
        found = run(configuration, minutes, monitor)
    rows = [
        (
            entry.method.name,
            duration(entry.seconds),
            NONE if entry.evidence is None else f"{entry.evidence.ratio:.3f}",
            NONE
            if entry.evidence is None
            else f"{entry.evidence.pruner} {entry.evidence.sparsity:.0%}, {entry.evidence.source}",
            "chosen" if entry is found.chosen else "",
        )
        for entry in found.methods
    ]
    console.print(text_table(("method", "time here", "÷ uniform", "measured with", ""), rows))
    console.print(found.why, soft_wrap=True)
    for command in commands(found.chosen.method, given):
        console.print(command, markup=False, soft_wrap=True)


def commands(method: Method, given: Mapping[str, Any]) -> list[str]:
    """Return the command lines that run a method.

    Args:
        method: A search, or an allocator.
        given: Options of `recommend` by parameter name.
    """
    name = "sparsity-search"
    model, budget = str(given["model"]), ["--sparsity", str(given["sparsity"])]
    shared, pruner = _shared(given), _option("pruner", given["pruner"])
    limits = [word for text in given["bounds"] or [] for word in ("--bounds", text)]
    if method.allocator is None:
        limits += ["--minutes", f"{given['minutes']:g}", "--out", "searched"]
        return [shlex.join([name, "search", model, *budget, *pruner, *shared, *limits])]
    # an allocator that prunes for its own use does so with the run's pruner
    run = ["--set", f"pruner.name={given['pruner']}"] if given["pruner"] else []
    chosen = ["--allocator", method.allocator, *budget, *run, *limits, "--out", "profile.json"]
    profile = ["--profile", "profile.json", *pruner, "--out", "pruned"]
    return [
        shlex.join([name, "allocate", model, *chosen, *shared]),
        shlex.join([name, "prune", model, *profile, *shared]),
    ]


def _shared(given: Mapping[str, Any]) -> list[str]:
    words = [word for key in _PASSED for word in _option(key, given.get(key))]
    words += ["--offload"] if given.get("offload") else []
    words += ["--trust-remote-code"] if given["trust_remote_code"] else []
    return words + [word for text in given["set_"] or [] for word in ("--set", text)]


def _option(name: str, value: object) -> list[str]:
    return [] if value is None else [f"--{name}", str(value)]
