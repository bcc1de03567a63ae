"""Presets through the command line, on little text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from .conftest import SMALL, Outcome

Cli = Callable[..., Outcome]


def test_evopress_drop_drops_as_many_of_each(cli: Cli, model: Path, tmp_path: Path) -> None:
    run, first = tmp_path / "run", "{candidates: 3, rungs: [{tokens: 16, survivors: 1}]}"
    outcome = cli(
        "search", model, "--config", "evopress_drop", "--sparsity", 0.3, "--rounds", 2,
        "--out", run, *SMALL, "--set", f"ladder.first={first}",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    for file in (run / "profiles").iterdir():
        units = json.loads(file.read_text())["units"]
        dropped = [name.rpartition(".")[2] for name, unit in units.items() if unit["removed"]]
        assert sorted(dropped) == ["mlp", "self_attn"], file


def test_evopress_names_the_space_for_small_models(cli: Cli, model: Path, tmp_path: Path) -> None:
    """Its step of a million weights is for large models; the code's default is for all."""
    options = ("--config", "evopress", "--sparsity", 0.5, "--rounds", 1, *SMALL)
    outcome = cli("search", model, *options, "--out", tmp_path / "run")
    assert outcome.code == 2
    assert outcome.err.strip().splitlines()[-1].endswith("a smaller step, e.g. evopress_default")
    assert not (tmp_path / "run").exists()
    small = (*options, "--space", "evopress_default", "--out", tmp_path / "small")
    outcome = cli("search", model, *small)
    assert outcome.code == 0, outcome.err
    assert json.loads((tmp_path / "small" / "run.json").read_text())["hidden_size"] == 32
    assert cli("predictor", tmp_path / "small", "--out", tmp_path / "data.json").code == 0
