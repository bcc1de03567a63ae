"""Costs and gains of methods, and that the gains are those of the benchmarks."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from sparsity_search.plans.methods import GAINS, list_pruners, load_methods
from sparsity_search.registry import PRUNERS

ROOT = Path(__file__).parents[2]
TABLES = ROOT / "benchmarks" / "results"


def read_gains() -> dict[str, list[dict[str, float]]]:
    found: dict[str, list[dict[str, float]]] = json.loads(
        files("sparsity_search.plans").joinpath(GAINS).read_text()
    )
    return found


def test_gains_are_those_of_the_tables() -> None:
    code = "import json, gains; print(json.dumps(gains.make_table()))"
    made = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "benchmarks", capture_output=True, check=True
    )
    assert json.loads(made.stdout) == read_gains()


def test_a_gain_is_the_mean_over_seeds() -> None:
    table = json.loads((TABLES / "allocators.json").read_text())
    found = {row["key"]: row["perplexity"] for row in table["rows"]}
    logs = [
        math.log(found[f"wanda-70-cfsp-seed{seed}"] / found[f"wanda-70-uniform-seed{seed}"])
        for seed in range(3)
    ]
    cfsp = next(method for method in load_methods() if method.name == "cfsp")
    gain = cfsp.find_gain("wanda", 0.7)
    assert gain is not None
    assert gain.ratio == pytest.approx(math.exp(sum(logs) / 3), abs=5e-4)


@pytest.mark.parametrize(("sparsity", "measured"), [(0.1, 0.5), (0.59, 0.5), (0.61, 0.7)])
def test_pruners_worth_their_time(sparsity: float, measured: float) -> None:
    rows = [row for row in read_gains()["pruners"] if row["sparsity"] == measured]
    worth = {
        row["pruner"]
        for row in rows
        if all(o["ratio"] > row["ratio"] for o in rows if o["seconds"] < row["seconds"])
    }
    found = list_pruners(sparsity)
    assert {figure.pruner for figure in found} == worth
    assert [f.seconds for f in found] == sorted(f.seconds for f in found)
    assert all(PRUNERS.get(figure.pruner).units[0] == "weights" for figure in found)
    assert {figure.sparsity for figure in found} == {measured}
