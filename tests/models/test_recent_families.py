"""Families of 2024 to 2026 through the whole program, and their table in the docs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from sparsity_search.testing.families import FAMILIES
from sparsity_search.testing.families.program import run_program
from sparsity_search.workflow import search as searching

ROOT = Path(__file__).parents[2]
TABLE = json.loads((ROOT / "benchmarks" / "results" / "families.json").read_text())


@pytest.fixture(autouse=True)
def _no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures out, which take most of the time."""
    monkeypatch.setattr(searching, "write_report", lambda *_: None)


@pytest.mark.parametrize("family", ["gemma3n", "zamba2", "llama4_text"])
def test_unusual_blocks_pass_every_step(family: str, tmp_path: Path) -> None:
    if not FAMILIES[family].is_available():
        pytest.skip(f"this release of transformers has no {FAMILIES[family].architecture}")
    outcome = run_program(FAMILIES[family], tmp_path / family)
    assert not any(outcome.faults.values()), outcome.faults


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_is_true(family: str, tmp_path: Path) -> None:
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    if TABLE["versions"] != versions:
        pytest.skip("the table is about other releases")
    row = next(row for row in TABLE["rows"] if row["family"] == family)
    outcome = run_program(FAMILIES[family], tmp_path / family)
    assert (outcome.faults, outcome.left) == (row["faults"], row["left"])


def test_the_table_has_all_families() -> None:
    assert [row["family"] for row in TABLE["rows"]] == list(FAMILIES)
    _, page = (ROOT / "docs" / "models.md").read_text().split("### Released")
    for row in TABLE["rows"]:
        left = "not run" if row["left"] is None else f"{100 * row['left']:.1f}%"
        line = next(line for line in page.splitlines() if line.startswith(f"| {row['label']} |"))
        assert line.endswith(f"| {left} |")
        assert line.count("| yes ") == sum(not fault for fault in row["faults"].values())
