"""Checkpoints in the layouts of releases through the command line: nothing is lost unsaid."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sparsity_search.config.load import load_config
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.session import open_session, request_search_text
from sparsity_search.evaluators.perplexity import PerplexityEvaluator
from tests.helpers.checkpoints import (
    add_prediction_layer,
    read_config,
    read_tensors,
    rewrite,
    save_family,
)

from .conftest import SMALL, Outcome

Cli = Callable[..., Outcome]


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A mixture in bfloat16 with a layer of multi-token prediction."""
    folder = save_family("qwen3_moe", tmp_path / "released", torch.bfloat16)
    add_prediction_layer(folder)
    return folder


def test_inspect_lists_what_is_not_loaded(cli: Cli, released: Path) -> None:
    outcome = cli("inspect", released, *SMALL, "--dtype", "float32")
    assert outcome.code == 0, outcome.err
    left = [name for name in read_tensors(released) if name.startswith("model.layers.2.")]
    (row,) = (line for line in outcome.out.splitlines() if "not loaded, copied" in line)
    assert f" {len(left)} " in row
    assert "computed in float32 on cpu, saved as float32" in outcome.out


@pytest.mark.parametrize("pruner", ["wanda", "sparsegpt"])
def test_prune_keeps_every_tensor(
    cli: Cli, released: Path, text: Path, tmp_path: Path, pruner: str
) -> None:
    out = tmp_path / "out"
    options = ("--calibration", f"file:{text}", "--sparsity", 0.5, "--pruner", pruner)
    outcome = cli("prune", released, "--out", out, *options, *SMALL)
    assert outcome.code == 0, outcome.err
    assert "saved as bfloat16" in outcome.out
    before, after = read_tensors(released), read_tensors(out)
    assert after.keys() == before.keys()
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    assert read_config(out) == read_config(released)
    profile = json.loads((out / "profile.json").read_text())
    assert sum(int((tensor == 0).sum()) for tensor in after.values()) == profile["removed"]
    left = [name for name in before if name.startswith("model.layers.2.")]
    assert profile["model"]["left_alone"]["tensors"] == len(left)
    assert all(torch.equal(after[name], before[name]) for name in left)
    assert f"{len(left)} tensors with" in (out / "README.md").read_text()
    assert cli("verify", out, "--profile", out / "profile.json").code == 0


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        ("prune", ["--pruner", "drop", "--units", "sublayers", "--materialise"], "--materialise"),
        ("prune", ["--pruner", "reap", "--units", "experts"], "--units experts"),
    ],
)
def test_another_shape_is_refused_before_the_work(
    cli: Cli, released: Path, text: Path, tmp_path: Path,
    command: str, options: list[str], words: str,
) -> None:  # fmt: skip
    given = ("--out", tmp_path / "out", "--calibration", f"file:{text}", "--sparsity", 0.25)
    outcome = cli(command, released, *given, *options, *SMALL)
    assert outcome.code == 2
    assert f"would not fit after {words}" in " ".join(outcome.err.split())
    assert "prune:" not in outcome.err
    assert not (tmp_path / "out").exists()


def test_figures_are_those_of_the_checkpoint(
    cli: Cli, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model in float16, pruned in float32: what is scored is what is saved."""
    monkeypatch.setattr(
        "sparsity_search.models.io.loading.resolve_dtype", lambda *_: torch.float32
    )
    half, out = tmp_path / "half", tmp_path / "run"
    half.mkdir()
    for file in model.iterdir():
        (half / file.name).write_bytes(file.read_bytes())
    rewrite(half, {n: t.half() for n, t in read_tensors(half).items()}, dtype="float16")
    options = ("--pruner", "sparsegpt", "--rounds", 1, "--initial", "uniform", "--sparsity", 0.5)
    outcome = cli("search", half, "--out", out, "--calibration", f"file:{text}", *options, *SMALL)
    assert outcome.code == 0, outcome.err
    saved = read_tensors(out / "checkpoint")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float16}

    results = json.loads((out / "results.json").read_text())
    row = next(row for row in results["rows"] if row["name"] == results["shipped"])
    given = {"model.name": str(out / "checkpoint"), "data.calibration": f"file:{text}"}
    config = load_config(None, given, SMALL[1::2])
    session = open_session(config.model, request_search_text(config.data), 0, Monitor())
    final, found = session.text["final"], session.loaded.model
    proxy = PerplexityEvaluator().bind(found, final)
    expected = proxy.score(found, range(len(final))).value
    assert row["perplexity"] == pytest.approx(expected, rel=1e-7)
