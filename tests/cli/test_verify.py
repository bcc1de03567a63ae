"""`verify` tells whatever is not as it was saved, and finds the profile by itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from .conftest import SMALL, Outcome

Cli = Callable[..., Outcome]


@pytest.fixture
def pruned(cli: Cli, model: Path, text: Path, tmp_path: Path) -> Path:
    out = tmp_path / "pruned"
    outcome = cli("prune", model, "--sparsity", 0.5, "--calibration", f"file:{text}",
                  "--dtype", "float32", "--out", out, *SMALL)  # fmt: skip
    assert outcome.code == 0, outcome.err
    return out


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def told(outcome: Outcome) -> str:
    return outcome.out.replace("\n", " ")


def test_the_profile_is_that_of_the_checkpoint(cli: Cli, pruned: Path, tmp_path: Path) -> None:
    outcome = cli("verify", pruned)
    assert outcome.code == 0, outcome.err
    assert "exactly as the profile says in each of 21 units" in told(outcome)
    assert "all 30 tensors are as they were saved" in told(outcome)
    shutil.move(pruned / "profile.json", tmp_path / "profile.json")  # as a search leaves it
    assert cli("verify", pruned).code == 0
    (tmp_path / "profile.json").unlink()
    outcome = cli("verify", pruned)
    assert outcome.code == 2
    assert "give --profile" in outcome.err


@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight"])
def test_a_changed_tensor_is_named(cli: Cli, pruned: Path, name: str) -> None:
    rewrite(pruned, lambda tensors: tensors[name].neg_())
    outcome = cli("verify", pruned)
    assert outcome.code == 2
    assert f"{name} differs" in outcome.err.replace("\n", " ")
    assert "Traceback" not in outcome.err


def test_a_checkpoint_of_an_earlier_version(cli: Cli, pruned: Path) -> None:
    """Its zeros are checked, and NaN is told."""
    (pruned / "checksums.json").unlink()
    rewrite(pruned, lambda tensors: tensors["model.norm.weight"].neg_())
    outcome = cli("verify", pruned)
    assert outcome.code == 0, outcome.err
    assert "no checksums are kept" in told(outcome)

    def set_nan(tensors: dict[str, Tensor]) -> None:
        tensors["model.embed_tokens.weight"][-1, 0] = float("nan")

    rewrite(pruned, set_nan)
    outcome = cli("verify", pruned)
    assert outcome.code == 2
    assert "model.embed_tokens.weight" in outcome.err.replace("\n", " ")
    assert "holds NaN" in outcome.err.replace("\n", " ")
