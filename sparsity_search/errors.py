"""Errors that a user can cause. Each also inherits the matching builtin exception."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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


class MissingExtraError(SparsitySearchError, ImportError):
    """An optional package is not installed."""


class SparsitySearchWarning(Warning):
    """Root of all warnings of this package; the command line shows each as one line."""


class MissingExtraWarning(SparsitySearchWarning):
    """An optional package is not installed, and a part of the result is left out."""


class BrokenPluginWarning(SparsitySearchWarning):
    """A plugin of an installed package cannot be loaded, and is left out."""


class ExperimentalWarning(SparsitySearchWarning):
    """A plugin loses to a simpler one in the project's own tables."""


class SkippedTextWarning(SparsitySearchWarning):
    """A text source has rows without text, which are skipped."""


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
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(names)}"
