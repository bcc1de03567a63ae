"""`prune` with patterns, composed pruners and structures on a tiny random model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.io.loading import load_model
from sparsity_search.models.io.saving import save_checkpoint
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.testing.models import tiny_mixtral, tiny_tokenizer
from sparsity_search.utils.files import atomic_folder

from .conftest import SMALL, Outcome

Cli = Callable[..., Outcome]


@pytest.fixture
def prune(cli: Cli, model: Path, text: Path, tmp_path: Path) -> Callable[..., Outcome]:
    def run(*options: Any) -> Outcome:
        source = ("--calibration", f"file:{text}")
        return cli("prune", model, "--out", tmp_path / "out", *source, *SMALL, *options)

    return run


@torch.inference_mode()
def logits(folder: Path) -> Tensor:
    tokens = torch.arange(3, 40)[None]
    return AutoModelForCausalLM.from_pretrained(folder).eval()(input_ids=tokens).logits


@pytest.mark.parametrize("pruner", ["wanda", "sparsegpt", "magnitude+refit", "wanda+sparsegpt"])
def test_groups(prune: Callable[..., Outcome], cli: Cli, tmp_path: Path, pruner: str) -> None:
    outcome = prune("--pruner", pruner, "--pattern", "2:4")
    assert outcome.code == 0, outcome.err
    assert cli("verify", tmp_path / "out", "--profile", tmp_path / "out/profile.json").code == 0
    subject = PrunableModel(load_model(str(tmp_path / "out")).model)
    for view in subject.views.values():
        assert ((view.read().reshape(-1, 4) == 0).sum(1) == 2).all()


def test_a_model_that_is_pruned_already(
    prune: Callable[..., Outcome], cli: Cli, tmp_path: Path
) -> None:
    assert prune("--pruner", "magnitude", "--sparsity", 0.5).code == 0
    again = ("prune", tmp_path / "out", "--pruner", "magnitude", "--out", tmp_path / "again")
    for options, words in (
        (("--sparsity", 0.3), "13824 of these weights (50.0%) are zero in the model already"),
        (("--pattern", "2:4"), "has 512 zeros of 1024 already, which are not 2:4"),
    ):
        outcome = cli(*again, *options)
        assert outcome.code == 2
        assert words in outcome.err
        assert not (tmp_path / "again").exists()


def test_composed_settings(prune: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = prune("--pruner", "wanda+refit", "--sparsity", 0.5, "--set", "pruner.damping=0.1",
                    "--set", "pruner.mask.pattern=layer")  # fmt: skip
    assert outcome.code == 0, outcome.err
    stored = json.loads((tmp_path / "out/profile.json").read_text())["pruner"]
    assert stored["name"] == "refit"
    assert stored["damping"] == 0.1
    assert stored["mask"] == {"name": "wanda", "pattern": "layer"}


@pytest.mark.parametrize(
    ("pruner", "units"), [("flap", "width"), ("wanda_sp", "heads"), ("drop", "sublayers")]
)
def test_materialised(
    prune: Callable[..., Outcome], cli: Cli, tmp_path: Path, pruner: str, units: str
) -> None:
    options = ("--pruner", pruner, "--units", units, "--sparsity", 0.4, "--dtype", "float32")
    assert prune(*options).code == 0
    masked, folder = logits(tmp_path / "out"), tmp_path / "masked"
    (tmp_path / "out").rename(folder)
    outcome = prune(*options, "--materialise", "--multiple-of", 4)
    assert outcome.code == 0, outcome.err
    smaller = tmp_path / "out"
    torch.testing.assert_close(logits(smaller), masked, rtol=1e-3, atol=1e-3)
    told = json.loads((smaller / "materialised.json").read_text())
    assert "materialised with one width for all blocks" in outcome.out.replace("\n", " ")
    assert told["bytes"]["materialised"] < sum(
        f.stat().st_size for f in folder.glob("*.safetensors")
    )
    assert told["parameters"]["materialised"] < told["parameters"]["dense"]
    assert told["tokens_per_second"]["dense"]["median"] > 0
    # zeros of both checkpoints are what their profiles say
    assert cli("verify", folder, "--profile", folder / "profile.json").code == 0
    assert cli("verify", smaller, "--profile", smaller / "materialised.json").code == 0
    assert cli("verify", smaller, "--profile", folder / "profile.json").code == 2
    # what is gone and what is padding make up the profile
    profile = json.loads((smaller / "profile.json").read_text())
    gone = told["parameters"]["dense"] - told["parameters"]["materialised"]
    if pruner != "flap":  # which adds biases
        norms = 2 * 32 * (told["blocks"]["dense"] - told["blocks"]["materialised"])
        assert gone - norms + told["padding"] >= profile["removed"]
        assert told["padding"] == told["removed"]


def test_padding_is_told_before_the_work(prune: Callable[..., Outcome], tmp_path: Path) -> None:
    options = ("--pruner", "wanda_sp", "--units", "width", "--sparsity", 0.2, "--materialise")
    outcome = prune(*options)
    assert "makes nothing smaller" in outcome.err
    assert outcome.err.index("--multiple-of 32") < outcome.err.index("prune:")
    (tmp_path / "out").rename(tmp_path / "first")
    outcome = prune(*options, "--multiple-of", 1)
    profile = json.loads((tmp_path / "out/profile.json").read_text())
    padding = json.loads((tmp_path / "out/materialised.json").read_text())["padding"]
    assert 0 < padding < profile["removed"]
    assert f"leaves {padding} of {profile['removed']} removed weights" in outcome.err


def test_excluded_blocks_move_up(prune: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = prune("--pruner", "drop", "--units", "blocks", "--sparsity", 0.5,
                    "--exclude", r"layers\.2$", "--materialise")  # fmt: skip
    assert outcome.code == 0, outcome.err
    told = json.loads((tmp_path / "out/materialised.json").read_text())
    assert told["blocks"] == {"dense": 3, "materialised": 2}
    assert list(told["units"]) == ["model.layers.0"]


def test_a_profile_says_what_it_removes(
    prune: Callable[..., Outcome], cli: Cli, model: Path, text: Path, tmp_path: Path
) -> None:
    profile = tmp_path / "profile.json"
    options = ("--calibration", f"file:{text}", *SMALL, "--units", "width")
    outcome = cli("allocate", model, "--allocator", "uniform", "--sparsity", 0.3,
                  "--out", profile, *options)  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert json.loads(profile.read_text())["removes"] == "width"
    outcome = prune("--profile", profile)
    assert outcome.code == 2
    assert "the profile removes width, the pruner 'wanda' weights" in outcome.err
    assert prune("--profile", profile, "--pruner", "wanda_sp").code == 0


REFUSED = {
    "units of another pruner": (
        ["--units", "width", "--sparsity", "0.5"],
        "the pruner 'wanda' removes weights, not width",
    ),
    "unknown units": (["--units", "widht", "--sparsity", "0.5"], "widht"),
    "no sparsity for a pattern": (["--pattern", "*:4"], "--sparsity"),
    "a count that the pattern cannot have": (["--pattern", "2:4", "--sparsity", "0.4"], "2 kept"),
    "unknown pattern": (["--pattern", "col", "--sparsity", "0.4"], "N:M"),
    "a pattern that is no text": (["--set", "pruner.pattern=2", "--sparsity", "0.5"], "not 2"),
    "unknown mask": (["--pruner", "wnada+refit", "--sparsity", "0.5"], "'wanda'"),
    "weights materialised": (["--materialise", "--sparsity", "0.5"], "only structures"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(prune: Callable[..., Outcome], tmp_path: Path, name: str) -> None:
    options, words = REFUSED[name]
    outcome = prune(*options)
    assert outcome.code == 2, outcome
    assert words in outcome.err.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_two_may_not_prune_into_one_folder(prune: Callable[..., Outcome], tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out") as other:
        outcome = prune("--sparsity", 0.5)
        (other / "theirs").touch()
    assert outcome.code == 2
    assert "prune:" not in outcome.err  # it is refused before that step
    assert f"another process is writing {tmp_path / 'out'}" in outcome.err
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["theirs"]
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_a_checkpoint_is_whole_or_absent(
    prune: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, _: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("sparsity_search.utils.versioned.write_json", fail)
    assert prune("--sparsity", 0.5).code == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("pruner", ["reap", "stun"])
def test_experts(cli: Cli, text: Path, tmp_path: Path, pruner: str) -> None:
    folder, out = tmp_path / "mixture", tmp_path / "out"
    save_checkpoint(tiny_mixtral(), tiny_tokenizer(), folder)
    options = ("--calibration", f"file:{text}", "--out", out, *SMALL, "--sparsity", 0.5)
    outcome = cli("prune", folder, "--pruner", pruner, *options)
    assert outcome.code == 0, outcome.err
    loaded = AutoModelForCausalLM.from_pretrained(out)
    before = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.config.num_local_experts == before.config.num_local_experts // 2
    assert loaded.model.layers[0].mlp.gate.weight.shape[0] == loaded.config.num_local_experts
    assert cli("verify", out, "--profile", out / "materialised.json").code == 0
    # and single weights inside of those that are left
    rest = tmp_path / "rest"
    outcome = cli("prune", out, "--pruner", "wanda", "--calibration", f"file:{text}", "--out",
                  rest, *SMALL, "--sparsity", 0.4)  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert cli("verify", rest, "--profile", rest / "profile.json").code == 0


def test_experts_that_cannot_be_saved(cli: Cli, text: Path, tmp_path: Path) -> None:
    """Refused before the text is used: too few for the router, or not equally many everywhere."""
    folder, out, profile = tmp_path / "mixture", tmp_path / "out", tmp_path / "profile.json"
    save_checkpoint(tiny_mixtral(), tiny_tokenizer(), folder)
    subject = PrunableModel(tiny_mixtral(), units="experts")
    uneven = SparsityProfile(subject.layout, (3, 5))
    profile.write_text(json.dumps({**uneven.to_json(), "removes": "experts"}))
    common = ("--pruner", "reap", "--calibration", f"file:{text}", "--out", out, *SMALL)
    for options, words in (
        (
            ("--sparsity", 0.9),
            "but the router needs 2, as each token is routed to 2: remove fewer",
        ),
        (("--profile", profile), "blocks keep between 3 and 5 experts"),
    ):
        outcome = cli("prune", folder, *common, *options)
        assert outcome.code == 2, outcome
        assert words in outcome.err.replace("\n", " ")
        assert "prune:" not in outcome.err
        assert not out.exists()


def test_experts_are_not_searched(cli: Cli, model: Path, tmp_path: Path) -> None:
    """All blocks keep equally many, so there is one profile for each target."""
    outcome = cli("search", model, "--units", "experts", "--pruner", "reap", "--sparsity", 0.5,
                  "--calibration", "self", "--out", tmp_path / "run", *SMALL)  # fmt: skip
    assert outcome.code == 2
    assert "there is nothing to search: " in outcome.err.replace("\n", " ")
    assert "load model" not in outcome.err
