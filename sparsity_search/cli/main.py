"""The command `sparsity-search`: one file a sub-command, heavy imports only when it runs."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from sparsity_search.cli.allocate import allocate
from sparsity_search.cli.compare import compare
from sparsity_search.cli.convert import convert
from sparsity_search.cli.evaluate import evaluate
from sparsity_search.cli.front import front
from sparsity_search.cli.inspect import inspect
from sparsity_search.cli.ls import ls
from sparsity_search.cli.predictor import predictor
from sparsity_search.cli.prune import prune
from sparsity_search.cli.recommend import recommend
from sparsity_search.cli.report import report
from sparsity_search.cli.search import search
from sparsity_search.cli.sensitivity import sensitivity
from sparsity_search.cli.solve import solve
from sparsity_search.cli.verify import verify
from sparsity_search.cli.work import work
from sparsity_search.errors import SparsitySearchError, SparsitySearchWarning

app = typer.Typer(
    name="sparsity-search",
    help="Finds how much to prune each layer of a language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
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
    verify,
    evaluate,
    inspect,
    report,
    work,
    ls,
)
for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """Run the command line; bad input is one line on stderr and exit code 2."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported
    try:
        with _one_line_warnings():
            app()
    except SparsitySearchError as error:
        _fail(str(error), 2)
    except OSError as error:
        _fail(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), 1)


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
                sys.stderr.write(f"sparsity-search: warning: {' '.join(str(message).split())}\n")

        warnings.showwarning = show_once
        yield


def _fail(message: str, code: int) -> None:
    sys.stderr.write(f"sparsity-search: {' '.join(message.split())}\n")
    sys.exit(code)
