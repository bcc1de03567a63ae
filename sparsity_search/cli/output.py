"""What a command prints: tables and sentences for people, or one JSON object for programs."""

from __future__ import annotations

import functools
import inspect
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

#: Panel of these options in the help of a command.
_PANEL = "Output"
_QUIET = Annotated[
    bool, typer.Option("--quiet", "-q", help="Show no progress.", rich_help_panel=_PANEL)
]
_VERBOSE = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        help="Show messages of the libraries, and where an error arose.",
        rich_help_panel=_PANEL,
    ),
]
_JSON = Annotated[
    bool,
    typer.Option("--json", help="Print the result as one JSON object.", rich_help_panel=_PANEL),
]
_OPTIONS = {"quiet": _QUIET, "verbose": _VERBOSE, "json_": _JSON}


@dataclass
class Output:
    """How the command of this process prints.

    Attributes:
        quiet: Whether it shows no progress.
        verbose: Whether it shows messages of the libraries, and where an error arose.
        json: Whether it prints its result as JSON, and nothing else on stdout.
    """

    quiet: bool = False
    verbose: bool = False
    json: bool = False


#: Of the command that runs in this process.
OUTPUT = Output()


def tell_loading() -> None:
    """Say that the libraries are loaded, unless they are: that takes seconds."""
    if "torch" not in sys.modules and not OUTPUT.quiet:
        sys.stderr.write("load libraries …\n")
        sys.stderr.flush()


def with_output(command: Callable[..., Mapping[str, Any] | None]) -> Callable[..., None]:
    """Return a command with the options ``--quiet``, ``--verbose`` and ``--json``.

    Args:
        command: A command that returns its result, for ``--json``.
    """

    @functools.wraps(command)
    def run(**values: Any) -> None:
        mode = {name: values.pop(name) for name in _OPTIONS}
        OUTPUT.quiet, OUTPUT.verbose, OUTPUT.json = mode.values()
        result = command(**values)
        if OUTPUT.json:
            sys.stdout.write(f"{json.dumps(_make_plain(result or {}), indent=2)}\n")

    signature = inspect.signature(command, eval_str=True)
    more = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation
        )
        for name, annotation in _OPTIONS.items()
    ]
    own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in signature.parameters.values()]
    run.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
    return run


def _make_plain(value: Any) -> Any:
    """Return a value as JSON has it: numbers that are not finite are null, paths are texts."""
    if isinstance(value, Mapping):
        return {str(key): _make_plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_make_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
