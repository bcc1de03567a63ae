"""Checks of a configuration that need no torch, whose import takes seconds, and no model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from sparsity_search.config.schema import GRADIENTS, RunConfig
from sparsity_search.data.sources import parse_source
from sparsity_search.errors import UnknownNameError, suggest_name
from sparsity_search.plans.plan import load_plan
from sparsity_search.registry import ALLOCATORS, SENSITIVITIES, Registry
from sparsity_search.runs.scores import load_scores
from sparsity_search.spaces.files import load_space
from sparsity_search.utils.reading import read_text

#: Keys of text sources.
_TEXTS = ("calibration", "search_text", "final_text")


def check_early(config: RunConfig, keys: Collection[str]) -> None:
    """Check that plan, space, starts, hints and texts exist.

    Args:
        config: The configuration.
        keys: Keys that the command has options for; others may be meant for other commands.

    Raises:
        SparsitySearchError: One is missing, or a file of them is not legal.
    """
    if "plan" in keys and config.plan is not None:
        load_plan(config.plan)
    if "space" in keys:
        load_space(config.space)
    if "initial" in keys:
        _check_names(ALLOCATORS, config.initial)
    if "hints" in keys:
        _check_hints(config.hints)
    for part in _TEXTS:
        source = getattr(config.data, part)
        if f"data.{part}" in keys and source is not None:
            parse_source(source)


def _check_hints(names: Sequence[str]) -> None:
    """Check that hints exist: gradients, sensitivities, or files of scores."""
    known = [GRADIENTS, *SENSITIVITIES.names()]
    for name in names:
        if name.endswith(".json"):
            load_scores(Path(name))
        elif name not in known and ":" not in name:
            raise UnknownNameError(f"unknown hint {name!r}: {suggest_name(name, known)}")


def _check_names(registry: Registry[object], names: Sequence[str]) -> None:
    """Check that plugins, or in their place JSON files, exist."""
    for name in names:
        if name.endswith(".json"):
            read_text(Path(name))
        else:
            registry.check(name)
