"""Rows of the final comparison: their pruners, and the uniform profile with the same pruner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparsity_search.plans.plan import UNIFORM

ResultRow = Mapping[str, Any]


def describe_pruner(spec: Mapping[str, Any]) -> str:
    """Return a pruner's name with its settings in words.

    >>> describe_pruner({"name": "alps"}), describe_pruner({"name": "wanda", "pattern": "2:4"})
    ('alps', 'wanda (pattern = 2:4)')
    >>> describe_pruner({"name": "refit", "mask": {"name": "wanda"}})
    'wanda+refit'
    """
    settings = {key: value for key, value in spec.items() if key != "name"}
    name, mask = str(spec["name"]), settings.get("mask")
    if isinstance(mask, Mapping) and "name" in mask:
        del settings["mask"]
        name = f"{describe_pruner(mask)}+{name}"
    return f"{name} ({describe_settings(settings)})" if settings else name


def describe_settings(settings: Mapping[str, Any]) -> str:
    """Return a plugin's settings in words."""
    return ", ".join(f"{name} = {value}" for name, value in settings.items())


def list_pruners(rows: Sequence[ResultRow]) -> list[str]:
    """Return the pruners of rows, in words, each once; older runs name none."""
    return list(dict.fromkeys(describe_pruner(row["pruner"]) for row in rows if row.get("pruner")))


def find_uniform(rows: Sequence[ResultRow], row: ResultRow) -> ResultRow:
    """Return the row of the uniform profile with the pruner of a row; empty if there is none."""
    plain = next((each for each in rows if each["name"] == UNIFORM), {})
    if row.get("pruner") in (None, plain.get("pruner")):  # of the dense model there is none
        return plain
    same = (each for each in rows if each.get("pruner") == row["pruner"])
    return next((each for each in same if each.get("profile") == plain.get("profile")), {})


def tell_no_gain(rows: Sequence[ResultRow], shipped: str) -> str:
    """Return a sentence if the shipped profile is not better than uniform with its pruner."""
    chosen = next((row for row in rows if row["name"] == shipped), {})
    uniform = find_uniform(rows, chosen) if chosen else {}
    mine, theirs = chosen.get("score"), uniform.get("score")
    if mine is None or theirs is None or mine < theirs:
        return ""
    if chosen is uniform:
        return "No profile was better than the uniform one, which is shipped."
    return f"{shipped} is not better than {uniform['name']}."
