"""`recover`, `--recover` and `merge-adapter` on a tiny random model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sparsity_search.errors import SparsitySearchError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.io.loading import load_model
from sparsity_search.recoveries.bases.blockwise import BlockReconstruction
from sparsity_search.testing.recovery import assert_same, list_zeros

from .conftest import SMALL, Outcome

Cli = Callable[..., Outcome]
QUICK = (
    *("--set", "recovery.steps=12", "--set", "recovery.sequences=6"),
    *("--set", "recovery.held_out=2", "--set", "recovery.rate=0.005", *SMALL),
)


@pytest.fixture
def pruned(cli: Cli, model: Path, text: Path, tmp_path: Path) -> Path:
    """A checkpoint at 60%."""
    out = tmp_path / "pruned"
    outcome = cli("prune", model, "--sparsity", 0.6, "--out", out, *SMALL,
                  "--calibration", f"file:{text}")  # fmt: skip
    assert outcome.code == 0, outcome.err
    return out


def read_zeros(folder: Path) -> dict[str, torch.Tensor]:
    return list_zeros(PrunableModel(load_model(str(folder)).model))


@pytest.mark.parametrize("method", [None, "perp", "distil"])
def test_recover(cli: Cli, pruned: Path, text: Path, tmp_path: Path, method: str | None) -> None:
    out = tmp_path / "recovered"
    options = ("--out", out, "--calibration", f"file:{text}", *QUICK)
    named = () if method is None else ("--method", method)
    outcome = cli("recover", pruned, *named, *options, "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["loss"]["after"] < found["loss"]["before"]
    assert found["perplexity"]["before"] > 0
    assert cli("verify", out).code == 0
    assert_same(read_zeros(pruned), read_zeros(out))
    stored = json.loads((out / "profile.json").read_text())
    assert stored["recovery"]["perplexity"] == found["perplexity"]
    assert {"calibration", "recovery", "recovery_held_out"} <= stored["text"].keys()
    card = (out / "README.md").read_text()
    assert "trained after pruning" in card
    assert "is as in the base model" not in card
    assert not list(tmp_path.glob("*unfinished*"))
    refused = cli("recover", pruned, *named, *options)
    assert (refused.code, "is not empty" in refused.err) == (2, True)


def test_blocks_of_an_offloaded_model(cli: Cli, pruned: Path, text: Path, tmp_path: Path) -> None:
    options = ("--calibration", f"file:{text}", *QUICK)
    for name, more in {"plain": (), "offloaded": ("--offload",)}.items():
        outcome = cli("recover", pruned, "--out", tmp_path / name, *more, *options)
        assert outcome.code == 0, outcome.err
    files = [tmp_path / name / "model.safetensors" for name in ("plain", "offloaded")]
    assert files[0].read_bytes() == files[1].read_bytes()
    refused = cli("recover", pruned, "--method", "perp", "--offload", "--out", tmp_path / "x",
                  *options)  # fmt: skip
    assert (refused.code, "--offload" in refused.err) == (2, True)


def test_an_interrupted_recovery_goes_on(
    cli: Cli, pruned: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--calibration", f"file:{text}", *QUICK)
    assert cli("recover", pruned, "--out", tmp_path / "whole", *options).code == 0
    train, done = BlockReconstruction._train, []

    def stop(self: BlockReconstruction, block: int, *rest: object) -> str:
        if block == 1 and not done:
            done.append(block)
            raise SparsitySearchError("stopped")
        return train(self, block, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(BlockReconstruction, "_train", stop)
    parts = ("--out", tmp_path / "parts")
    assert cli("recover", pruned, *parts, *options).code == 2
    assert (tmp_path / "parts.unfinished" / "block-0000.safetensors").exists()
    other = cli("recover", pruned, *parts, *options, "--set", "recovery.rate=0.02")
    assert other.code == 2
    assert "unfinished recovery" in other.err
    outcome = cli("recover", pruned, *parts, *options)
    assert outcome.code == 0, outcome.err
    files = [tmp_path / name / "model.safetensors" for name in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_prune_and_recover(cli: Cli, model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--sparsity", 0.6, "--calibration", f"file:{text}", *QUICK)
    outcome = cli("prune", model, *options, "--recover", "block", "--out", out, "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["recovery"]["loss"]["after"] < found["recovery"]["loss"]["before"]
    assert "recovery" in json.loads((out / "profile.json").read_text())
    assert cli("verify", out).code == 0
    assert cli("prune", model, *options, "--out", tmp_path / "plain").code == 0
    assert_same(read_zeros(tmp_path / "plain"), read_zeros(out))


def test_search_and_recover(cli: Cli, model: Path, text: Path, tmp_path: Path) -> None:
    options = ("--sparsity", 0.6, "--calibration", f"file:{text}", "--rounds", 1, *QUICK)
    outcome = cli("search", model, *options, "--recover", "block", "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    for name in ("checkpoint", "recovered"):
        assert cli("verify", tmp_path / "run" / name).code == 0
        assert f"run/{name}" in outcome.out
    files = [tmp_path / "run" / "recovered" / name for name in ("profile.json", "config.json")]
    before = [file.stat().st_mtime_ns for file in files]
    again = cli("search", model, *options, "--recover", "block", "--out", tmp_path / "run")
    assert again.code == 0, again.err
    assert before == [file.stat().st_mtime_ns for file in files]  # nothing is trained twice
    assert_same(*(read_zeros(tmp_path / "run" / name) for name in ("checkpoint", "recovered")))


def test_refused(cli: Cli, model: Path, pruned: Path, text: Path, tmp_path: Path) -> None:
    options = ("--out", tmp_path / "out", "--calibration", f"file:{text}", *QUICK)
    for arguments, words in {
        (pruned, "--method", "blok"): "did you mean 'block'",
        (pruned, "--method", "scales"): "needs units width or heads",
        (pruned, "--minutes", 0): "minutes",
        (pruned, "--set", "recovery.batch=0"): "batch must be positive, not 0",
        (model,): "recover takes checkpoints of prune and search",
        (pruned, "--dense", pruned): "give that with --dense",
        (pruned, "--set", "recovery.rank=-1"): "rank must not be negative",
        (pruned, "--method", "distil", "--offload"): "or choose block",
    }.items():
        outcome = cli("recover", *arguments, *options)
        assert outcome.code == 2, arguments
        assert words in outcome.err, outcome.err
    assert not (tmp_path / "out").exists()


def test_merge_adapter(cli: Cli, pruned: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    adapter, out = tmp_path / "adapter", tmp_path / "merged"
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    loaded = load_model(str(pruned))
    peft.get_peft_model(loaded.model, settings).save_pretrained(adapter)
    refused = cli("merge-adapter", pruned, adapter, "--out", out)
    assert refused.code == 2
    assert "merging fills" in refused.err
    assert "--mask" in refused.err
    assert not out.exists()
    outcome = cli("merge-adapter", pruned, adapter, "--mask", "--out", out, "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["dropped"] > 0.3
    assert cli("verify", out).code == 0
    assert_same(read_zeros(pruned), read_zeros(out))
    before, after = (load_model(str(folder)).model.state_dict() for folder in (pruned, out))
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {n for n in before if "q_proj.weight" in n or "up_proj.weight" in n}
    nothing = cli("merge-adapter", pruned, tmp_path, "--out", tmp_path / "x")
    assert (nothing.code, "adapter_config.json" in nothing.err) == (2, True)


def test_what_cannot_be_recovered_is_refused_before_pruning(
    cli: Cli, model: Path, tmp_path: Path
) -> None:
    for command, options, words in (
        ("prune", ("--recover", "scales"), "needs units width or heads"),
        ("prune", ("--recover", "perp", "--offload"), "or choose block"),
        ("prune", ("--minutes", 1), "give --recover too"),
        ("search", ("--recover", "scales"), "needs units width or heads"),
        ("search", ("--recover", "blok"), "did you mean 'block'"),
    ):
        outcome = cli(command, model, "--sparsity", 0.5, *options, "--out", tmp_path / "o", *SMALL)
        assert outcome.code == 2, (command, options)
        assert words in outcome.err, outcome.err
        assert not list(tmp_path.iterdir())


def test_text_that_is_too_short_says_how_to_go_on(
    cli: Cli, model: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ("--calibration", f"file:{text}", *QUICK, "--set", "recovery.sequences=99999")
    outcome = cli("prune", model, "--sparsity", 0.5, "--recover", "block", "--out", out, *options)
    assert outcome.code == 2
    assert f"sparsity-search recover {out}" in outcome.err
    assert cli("verify", out).code == 0


@pytest.mark.parametrize("method", ["block", "scales", "perp"])
def test_smaller_checkpoints(
    cli: Cli, model: Path, text: Path, tmp_path: Path, method: str
) -> None:
    pruned, out = tmp_path / "pruned", tmp_path / "out"
    options = ("--calibration", f"file:{text}", *QUICK)
    prune = ("--pruner", "wanda_sp", "--sparsity", 0.25, "--materialise", "--multiple-of", 8)
    assert cli("prune", model, *prune, "--out", pruned, *options).code == 0
    outcome = cli("recover", pruned, "--method", method, "--out", out, *options)
    assert outcome.code == 0, outcome.err
    assert cli("verify", out).code == 0
    config = [(folder / "config.json").read_text() for folder in (pruned, out)]
    assert config[0] == config[1]


def test_a_recovery_that_spoils_the_model_says_so(
    cli: Cli, pruned: Path, text: Path, tmp_path: Path
) -> None:
    """It gains on few sequences and loses on other text."""
    options = ("--calibration", f"file:{text}", *SMALL, "--set", "recovery.sequences=1")
    few = ("--set", "recovery.held_out=1", "--set", "recovery.steps=40", "--set",
           "recovery.rate=0.1")  # fmt: skip
    outcome = cli("recover", pruned, "--out", tmp_path / "out", *options, *few, "--json")
    found = json.loads(outcome.out)["perplexity"]
    shown = cli("recover", pruned, "--out", tmp_path / "again", *options, *few).out
    assert ("is not better" in shown) == (found["after"] >= found["before"])
