"""Commands without a text use that of the package, and say so once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import SMALL, Outcome

Cli = Callable[..., Outcome]
TOLD = "the text 'sample' of the package is used"


def test_a_search_without_a_text_says_so_once(cli: Cli, model: Path, tmp_path: Path) -> None:
    outcome = cli(
        *("search", model, "--sparsity", 0.6, "--rounds", 1, "--out", tmp_path / "run"), *SMALL
    )
    assert outcome.code == 0, outcome.err
    (line,) = (line for line in outcome.err.splitlines() if TOLD in line)
    assert "--calibration file:PATH" in line
    text = json.loads((tmp_path / "run" / "run.json").read_text())["text"]
    assert {part["source"] for part in text.values()} == {"sample"}
    assert len({part["digest"] for part in text.values()}) == 3
    assert {len(part["sha256"]) for part in text.values()} == {16}


@pytest.mark.parametrize("allocator", ["owl", "uniform"])
@pytest.mark.parametrize("given", [None, "sample", "file"])
def test_the_line_is_only_where_this_text_is_read(
    cli: Cli, model: Path, text: Path, tmp_path: Path, allocator: str, given: str | None
) -> None:
    options = {
        None: (),
        "sample": ("--calibration", "sample"),
        "file": ("--calibration", f"file:{text}"),
    }[given]
    outcome = cli(
        *("allocate", model, "--allocator", allocator, "--sparsity", 0.6),
        *("--out", tmp_path / "profile.json", *SMALL, *options),
    )
    assert outcome.code == 0, outcome.err
    assert outcome.err.count(TOLD) == (allocator == "owl" and given != "file")
