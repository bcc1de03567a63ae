from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import SMALL, Outcome

Cli = Callable[..., Outcome]


def test_a_comparison_and_more_of_it(cli: Cli, model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--text", f"file:{text}", "--calibration", f"file:{text}", "--out", out, *SMALL,
               "--set", "allocators.dlp.spread=0.1")  # fmt: skip
    outcome = cli("compare", model, "--allocators", "owl[m=7;spread=0.2],dlp", "--sparsity", 0.6,
                  *options)  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "owl[m=7;spread=0.2]" in outcome.out  # not taken as markup
    assert "3 of 3 rows" in outcome.out
    for column in ("÷ uniform", "allocation", "passes"):
        assert column in outcome.out
    assert f"{out / 'report.html'}" in outcome.out
    outcome = cli("compare", model, "--allocators", "owl,sleb", "--sparsity", "0.6,0.7",
                  "--pruner", "wanda+refit", "--pattern", "layer", *options)  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "9 of 9 rows, 2 of them refused" in outcome.out
    assert "needs units blocks" in outcome.out
    with (out / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    assert {row["pruner"] for row in rows} == {"wanda", "wanda+refit"}
    settings = {row["allocator"]: row["settings"] for row in rows}
    assert "spread=0.1" in settings["dlp"]
    assert "m=7, spread=0.2" in settings["owl[m=7;spread=0.2]"]
    made = json.loads((out / "rows" / "wanda+refit-70-owl-seed0.json").read_text())
    assert "Wanda(pattern='layer'" in made["fingerprint"]["pruner"]
    assert "compare" in json.loads((out / "compare.json").read_text())["command"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--allocators", "olw"], ["'owl'"]),
        (["--allocators", "owl[n=3]"], ["'n'", "spread"]),
        (["--allocators", "owl", "--pruner", "wanda,wnada"], ["'wanda'"]),
        (["--allocators", "owl", "--sparsity", "much"], ["0.5,0.6"]),
        (["--allocators", "owl", "--sparsity", "1.5"], ["between 0 and 1"]),
        (["--allocators", "owl", "--seeds", "0"], ["--seeds"]),
        (["--allocators", "owl", "--text", "file:absent.txt"], ["absent.txt"]),
        (["--allocators", "owl", "--bounds", "up=0:0.1", "--bounds", "down=0:0.1"], ["0 to 0.5"]),
    ],
)
def test_refused(
    cli: Cli, model: Path, tmp_path: Path, options: list[str], words: list[str]
) -> None:
    out = tmp_path / "out"
    outcome = cli("compare", model, "--sparsity", "0.6", "--out", out, *SMALL, *options)
    assert outcome.code == 2, outcome
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in outcome.err
    assert not out.exists()
