"""`data.refresh` and `pruner.towards_dense` reach all commands that prune layer by layer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import SMALL, Outcome

Cli = Callable[..., Outcome]

#: Settings that each give another pruned model.
WAYS = (
    ("data.refresh=layer", "pruner.towards_dense=0.25"),
    ("data.refresh=layer", "pruner.towards_dense=0"),
    ("data.refresh=block", "pruner.towards_dense=0"),
)


def read_prune(out: Path) -> Any:
    return json.loads((out / "checksums.json").read_text())


def read_search(out: Path) -> Any:
    rows = json.loads((out / "results.json").read_text())["rows"]
    return next(row["perplexity"] for row in rows if row["name"] == "uniform")


def read_comparison(out: Path) -> Any:
    return json.loads((out / "rows" / "sparsegpt-60-uniform-seed0.json").read_text())["perplexity"]


@pytest.mark.parametrize(
    ("command", "read"),
    [
        (("prune",), read_prune),
        (("search", "--plan", "quick", "--initial", "uniform"), read_search),
        (("compare", "--allocators", "lamp"), read_comparison),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_each_way_is_another(
    cli: Cli,
    model: Path,
    text: Path,
    tmp_path: Path,
    command: tuple[str, ...],
    read: Callable[[Path], Any],
) -> None:
    found = []
    for place, settings in enumerate(WAYS):
        name, *options = command
        out = tmp_path / str(place)
        given = [part for setting in settings for part in ("--set", setting)]
        shared = ("--pruner", "sparsegpt", "--sparsity", 0.6, "--calibration", f"file:{text}")
        outcome = cli(name, model, *options, *shared, *SMALL, *given, "--out", out)
        assert outcome.code == 0, outcome.err
        found.append(read(out))
    assert all(one != other for i, one in enumerate(found) for other in found[:i])
