"""The published results: one table for each benchmark, whose profiles can be used again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import SparsityProfile

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
FILES = sorted((BENCHMARKS / "results").rglob("*"))


def test_one_file_a_benchmark_with_a_plain_name() -> None:
    assert FILES
    wrong = [file.name for file in FILES if not re.fullmatch(r"[a-z_]+\.json", file.name)]
    assert not wrong
    assert all((BENCHMARKS / f"{file.stem}.py").exists() for file in FILES)


def test_tables_are_small() -> None:
    assert sum(file.stat().st_size for file in FILES) < 2**20


@pytest.mark.parametrize("name", ["allocators", "searchers", "time_to_quality"])
def test_profiles_fit_the_layout_and_a_budget(name: str) -> None:
    tables = {file.stem: json.loads(file.read_text()) for file in FILES}
    layout = Layout.from_json(tables["allocators"]["layout"])
    profiles = tables[name]["profiles"]
    weights = [counts for counts in profiles.values() if len(counts) == len(layout)]
    assert len(weights) >= 5
    for counts in weights:
        sparsity = SparsityProfile(layout, tuple(counts)).sparsity
        assert min(abs(sparsity - target) for target in (0.5, 0.7)) < 1e-6


def test_every_row_of_the_allocators_has_its_profile() -> None:
    table = json.loads((BENCHMARKS / "results" / "allocators.json").read_text())
    assert len(table["rows"]) > 50
    assert {row["profile"] for row in table["rows"]} <= table["profiles"].keys()
