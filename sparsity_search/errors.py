"""Errors that a user can cause. Each also inherits the matching builtin exception."""

from __future__ import annotations

import difflib
import os
import re
import reprlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

#: Longest text of a bad value in a message, and longest name that is compared with known ones.
_LONGEST = 80
#: Most files of a folder whose names are compared with one that is missing.
_FILES = 10_000


class SparsitySearchError(Exception):
    """Root of all errors; the message names the fault in the input and the remedy."""


class ConfigError(SparsitySearchError, ValueError):
    """A configuration, option or argument is invalid."""


class UnknownNameError(SparsitySearchError, LookupError):
    """A plugin, space, role or unit name does not exist."""


class InfeasibleBudgetError(SparsitySearchError, ValueError):
    """No profile within the bounds meets the budget."""


class ProfileError(SparsitySearchError, ValueError):
    """A profile is corrupt or belongs to another model."""


class ModelError(SparsitySearchError, ValueError):
    """A model cannot be loaded, or has no weights that can be pruned."""


class DataError(SparsitySearchError, ValueError):
    """A text source is missing, empty or too short."""


class RunMismatchError(SparsitySearchError, ValueError):
    """A stored run or artefact has another configuration."""


class MissingMeasurementsError(ConfigError):
    """The measurements of a run are not where they were, or in a database that was not given."""


class MissingExtraError(SparsitySearchError, ImportError):
    """An optional package is not installed."""


class MachineError(SparsitySearchError, OSError):
    """The machine failed, not the input: a full disk, a folder that cannot be written, memory."""


class SparsitySearchWarning(Warning):
    """Root of all warnings of this package; the command line shows each as one line."""


class MissingExtraWarning(SparsitySearchWarning):
    """An optional package is not installed, and a part of the result is left out."""


class MissingMeasurementsWarning(SparsitySearchWarning):
    """The measurements of a run cannot be found, and are left out of its report."""


class BrokenPluginWarning(SparsitySearchWarning):
    """A plugin of an installed package cannot be loaded, and is left out."""


class ExperimentalWarning(SparsitySearchWarning):
    """A plugin loses to a simpler one in the project's own tables."""


class SkippedTextWarning(SparsitySearchWarning):
    """A text source has rows without text, which are skipped."""


class SampleTextWarning(SparsitySearchWarning):
    """The sample text of the package is used."""


class PaddingWarning(SparsitySearchWarning):
    """A smaller checkpoint keeps removed structures as zeros."""


class NumericalError(SparsitySearchError, ArithmeticError):
    """A computation returned values that are not finite."""


def suggest_name(name: str, known: Iterable[str]) -> str:
    """Return a hint for an unknown name: the nearest known one, else all of them.

    >>> suggest_name("wnada", ["magnitude", "wanda"])
    "did you mean 'wanda'? Known: magnitude, wanda"
    """
    names = sorted(known)
    close = difflib.get_close_matches(name[:_LONGEST], names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(names)}"


def suggest_file(path: Path) -> str:
    """Return a hint for a file that is missing: the file next to it with the nearest name.

    >>> suggest_file(Path("/no/such/folder/file"))
    ''
    """
    try:
        names = [entry.name for entry in islice(os.scandir(path.parent), _FILES)]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name[:_LONGEST], sorted(names), n=1)
    return f"; did you mean {path.with_name(close[0])}?" if close else ""


def show_value(value: object) -> str:
    """Return a bad value for a message: its ``repr``, cut where it is long, large or deep.

    >>> show_value([1, "a", None])
    "[1, 'a', None]"
    >>> show_value(list(range(1000)))
    '[0, 1, 2, 3, 4, 5, ...]'
    """
    return _REPR.repr(value)


def escape_controls(text: str) -> str:
    r"""Return a text for a terminal: control characters are shown, and not obeyed.

    >>> escape_controls("red\x1b[31m")
    'red\\x1b[31m'
    """
    return text.translate(_CONTROLS)


@contextmanager
def told_of(subject: object, error: type[SparsitySearchError] | None = None) -> Iterator[None]:
    """Put what an error is about before its message.

    Args:
        subject: The start of the message, such as the path of a file.
        error: Type of the error that leaves; by default the one that was raised.
    """
    try:
        yield
    except SparsitySearchError as raised:
        raise (error or type(raised))(f"{subject}: {raised}") from raised


def find_machine_fault(error: BaseException) -> str | None:
    """Return what failed of the machine, in one line; None if that is not the cause.

    Libraries in Rust (safetensors, tokenizers) raise their own errors for a full disk, and torch
    a plain ``RuntimeError`` for memory: both are known by their text.
    """
    text = " ".join(str(error).split())
    if isinstance(error, OSError):
        return error.strerror or text or type(error).__name__
    if found := _RUST.search(text):
        return os.strerror(int(found[1]))
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and _MEMORY.search(text)
    ):
        wanted = _WANTED.search(text)
        size = f" for {wanted[1]}" if wanted else ""
        return f"not enough memory{size}: try --offload, or shorter or fewer sequences (data.*)"
    return None


_RUST = re.compile(r"\(os error (\d{1,4})\)")
_MEMORY = re.compile(r"can't allocate memory|out of memory", re.IGNORECASE)
_WANTED = re.compile(r"tried to allocate ([\d.]+ \w+)", re.IGNORECASE)
_CONTROLS = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"
}
_REPR = reprlib.Repr()
_REPR.maxlevel = 3
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = _LONGEST
