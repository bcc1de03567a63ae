"""A search with --offload finds and ships what it does without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .conftest import SMALL, Outcome

Cli = Callable[..., Outcome]


def test_a_search_is_the_same_and_goes_on_in_memory(
    cli: Cli, model: Path, text: Path, tmp_path: Path
) -> None:
    options = ("--sparsity", 0.5, "--calibration", text, "--device", "cpu", *SMALL)
    runs = {name: tmp_path / name for name in ("memory", "offload")}
    disk = ("--offload", "--set", "supernet.store=disk")
    assert cli("search", model, *options, "--rounds", 1, "--out", runs["memory"]).code == 0
    outcome = cli("search", model, *options, *disk, "--rounds", 1, "--out", runs["offload"])
    assert outcome.code == 0, outcome.err
    for file in ("profile.json", "checkpoint/model.safetensors"):
        contents = [(run / file).read_bytes() for run in runs.values()]
        assert contents[0] == contents[1]
    again = cli("search", model, *options, "--rounds", 2, "--out", runs["offload"])
    assert again.code == 0, again.err


def test_gradients_refuse(cli: Cli, model: Path, text: Path, tmp_path: Path) -> None:
    options = ("--sparsity", 0.5, "--calibration", text, "--pruner", "gblm", "--offload")
    outcome = cli("prune", model, *options, "--out", tmp_path / "out", *SMALL[:4])
    assert outcome.code == 2
    assert "leave out --offload" in " ".join(outcome.err.split())
    assert not (tmp_path / "out").exists()
