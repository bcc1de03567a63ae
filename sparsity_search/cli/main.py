"""The command `sparsity-search`: one file a sub-command, heavy imports only when it runs."""

from __future__ import annotations

import errno
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Annotated, Any

import typer

from sparsity_search import __version__
from sparsity_search.cli.allocate import allocate
from sparsity_search.cli.compare import compare
from sparsity_search.cli.convert import convert
from sparsity_search.cli.evaluate import evaluate
from sparsity_search.cli.front import front
from sparsity_search.cli.inspect import inspect
from sparsity_search.cli.ls import ls
from sparsity_search.cli.merge_adapter import merge_adapter
from sparsity_search.cli.output import OUTPUT, with_output
from sparsity_search.cli.predictor import predictor
from sparsity_search.cli.prune import prune
from sparsity_search.cli.recommend import recommend
from sparsity_search.cli.recover import recover
from sparsity_search.cli.report import report
from sparsity_search.cli.search import search
from sparsity_search.cli.sensitivity import sensitivity
from sparsity_search.cli.solve import solve
from sparsity_search.cli.verify import verify
from sparsity_search.cli.work import work
from sparsity_search.errors import (
    ConfigError,
    MachineError,
    SparsitySearchError,
    SparsitySearchWarning,
    escape_controls,
    find_machine_fault,
    show_value,
)

_NAME = "sparsity-search"
app = typer.Typer(
    name=_NAME,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
COMMANDS = (
    search,
    front,
    compare,
    recommend,
    allocate,
    sensitivity,
    solve,
    predictor,
    convert,
    prune,
    recover,
    merge_adapter,
    verify,
    evaluate,
    inspect,
    report,
    work,
    ls,
)
for command in COMMANDS:
    app.command()(with_output(command))


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"{_NAME} {__version__}")
        raise typer.Exit


@app.callback()
def run_command(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Find how much to prune each layer of a language model."""


#: What typer raises for a wrong command line: its own class, or click's.
_UsageError: Any = typer.BadParameter.__base__
#: Longest message, in characters: what is longer loses its middle.
_LONGEST = 1200


def main() -> None:
    """Run the command line; any failure is one line on stderr.

    The exit code is 2 for bad input, 1 where the machine failed, 130 after Ctrl-C.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that plugins in the working folder hide nothing
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal may lack characters of a name
            stream.reconfigure(errors="backslashreplace")
    try:
        with _one_line_warnings():
            _check_text(sys.argv)
            sys.exit(app(sys.argv[1:] or ["--help"], _NAME, standalone_mode=False))
    except _UsageError as error:
        where = error.ctx.command_path if error.ctx else _NAME
        _fail(f"{error.format_message().rstrip('.')}; see {where} --help", 2)
    except typer.Abort:
        _fail("stopped", 130)
    except SparsitySearchError as error:
        if OUTPUT.verbose:
            traceback.print_exc()
        _fail(str(error), 1 if isinstance(error, MachineError) else 2)
    except Exception as error:
        reason = find_machine_fault(error)
        if reason is None:
            raise
        file = getattr(error, "filename", None)
        code = 2 if getattr(error, "errno", None) == errno.ENAMETOOLONG else 1
        _fail(f"{reason}: {file}" if file else reason, code)


def _check_text(arguments: Sequence[str]) -> None:
    """Check that arguments are UTF-8, as the files are that they are written to.

    Raises:
        ConfigError: One is not.
    """
    for argument in arguments:
        if argument != argument.encode(errors="replace").decode():
            raise ConfigError(f"the argument {show_value(argument)} is not UTF-8 text")


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Show each warning of this package once, as one line; others as Python does."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", SparsitySearchWarning)
        show, shown = warnings.showwarning, set[str]()

        def show_once(
            message: Warning | str, category: type[Warning], *where: Any, **more: Any
        ) -> None:
            if not issubclass(category, SparsitySearchWarning):
                show(message, category, *where, **more)
            elif str(message) not in shown:
                shown.add(str(message))
                sys.stderr.write(f"{_NAME}: warning: {_fit(str(message))}\n")

        warnings.showwarning = show_once
        yield


def _fail(message: str, code: int) -> None:
    sys.stderr.write(f"{_NAME}: {_fit(message)}\n")
    sys.exit(code)


def _fit(message: str) -> str:
    """Return a message as one line of bounded length, without codes that move the cursor."""
    line = escape_controls(" ".join(message.split()))
    half = _LONGEST // 2
    return line if len(line) <= _LONGEST else f"{line[:half]} … {line[-half:]}"
