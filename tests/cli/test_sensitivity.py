from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from sparsity_search.data.sequences import Request, draw
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.io.loading import load_model
from sparsity_search.profiles.budget import Budget
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.profiles.scores import build_count_tables
from sparsity_search.pruners.wanda import WandaPruner
from sparsity_search.runs.scores import load_scores
from sparsity_search.sensitivities.fisher import FisherSensitivity
from sparsity_search.testing.models import tiny_llama

from .conftest import SMALL, Outcome

Cli = Callable[..., Outcome]


def test_measured_once_solved_for_two_budgets(
    cli: Cli, model: Path, text: Path, tmp_path: Path
) -> None:
    scores, profiles = tmp_path / "scores.json", tmp_path / "profiles"
    outcome = cli("sensitivity", model, "--out", scores, "--calibration", f"file:{text}",
                  "--pruner", "magnitude", "--exclude", r"layers\.0\.mlp", "--seed", 3, *SMALL,
                  "--set", "sensitivity.pairs=true", "--set", "sensitivity.positions=8",
                  "--set", "allocators.knapsack.levels=[0.3,0.9]")  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "losses of 18 units at 36 levels" in outcome.out.replace("\n", " ")
    found = load_scores(scores)
    assert found.pairs is not None
    assert [tuple(c) for c in found.counts] == list(build_count_tables(found.layout, (0.3, 0.9)))
    assert found.facts["sensitivity"] == {"name": "fisher", "pairs": True, "positions": 8}
    assert found.facts["pruner"]["name"] == "magnitude"
    assert (found.facts["seed"], found.facts["removes"]) == (3, "weights")
    outcome = cli("solve", scores, "--sparsity", "0.35,0.7", "--out", profiles)
    assert outcome.code == 0, outcome.err
    for target in (0.35, 0.7):
        stored = json.loads((profiles / f"profile-{target}.json").read_text())
        profile = SparsityProfile.from_json(found.layout, stored)
        assert profile.n_removed == Budget(target).n_removed(found.layout)
        assert profile.removed != Budget(target).uniform(found.layout).removed
        assert stored["model"] == found.facts["model"]


def test_the_seed_decides_the_draws(cli: Cli, model: Path, text: Path, tmp_path: Path) -> None:
    """The text of a file is the same for all seeds, so that only the drawn labels differ."""
    losses = {}
    for seed in (0, 7):
        file = tmp_path / f"{seed}.json"
        outcome = cli("sensitivity", model, "--out", file, "--calibration", f"file:{text}",
                      "--seed", seed, *SMALL)  # fmt: skip
        assert outcome.code == 0, outcome.err
        losses[seed] = np.concatenate(load_scores(file).losses)
    assert not np.array_equal(losses[0], losses[7])
    loaded = load_model(str(model))
    subject, scores = PrunableModel(loaded.model), load_scores(tmp_path / "7.json")
    tokens = draw([Request("calibration", f"file:{text}", 4, 32)], loaded, 0)["calibration"]
    counts = [tuple(c) for c in scores.counts]
    direct = FisherSensitivity().measure(subject, tokens, WandaPruner(), counts, seed=7)
    np.testing.assert_array_equal(np.concatenate(direct.losses), losses[7])


@pytest.mark.parametrize("method", ["layer_error", "block_error", "single_kl"])
def test_other_methods_and_units(
    cli: Cli, model: Path, text: Path, tmp_path: Path, method: str
) -> None:
    scores = tmp_path / "scores.json"
    outcome = cli("sensitivity", model, "--sensitivity", method, "--units", "width", "--pruner",
                  "flap", "--out", scores, "--calibration", f"file:{text}", *SMALL,
                  "--set", "allocators.knapsack.levels=[0.5]")  # fmt: skip
    assert outcome.code == 0, outcome.err
    found = load_scores(scores)
    assert found.facts["sensitivity"]["name"] == method
    assert len(found.layout) == 6
    assert not scores.with_suffix(".safetensors").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sensitivity", "fishr"], ["'fisher'"]),
        (["--set", "sensitivity.draws=0"], ["draws must be at least 1"]),
        (["--set", "sensitivity.drws=2"], ["'draws'"]),
        (["--sensitivity", "layer_error", "--units", "blocks", "--pruner", "drop"],
         ["needs units weights", "not blocks"]),
        (["--units", "width", "--pruner", "wanda"], ["wanda", "not width"]),
        (["--pruner", "laco"], ["use drop instead"]),
        (["--calibration", "file:absent.txt"], ["absent.txt"]),
    ],
)  # fmt: skip
def test_refused(
    cli: Cli, model: Path, tmp_path: Path, options: list[str], words: list[str]
) -> None:
    out = tmp_path / "scores.json"
    outcome = cli("sensitivity", model, "--out", out, *SMALL, *options)
    assert outcome.code == 2, outcome
    *_, message = outcome.err.strip().splitlines()  # before it, what was done
    for word in words:
        assert word in message
    assert "Traceback" not in outcome.err
    assert not out.exists()


def test_out_is_a_json_file(cli: Cli, model: Path, tmp_path: Path) -> None:
    outcome = cli("sensitivity", model, "--out", tmp_path / "scores")
    assert outcome.code == 2
    assert "name --out FILE.json" in outcome.err


def test_allocate_leaves_arrays_and_notes(
    cli: Cli, model: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "profile.json"
    options = ("--sparsity", 0.5, "--calibration", f"file:{text}", "--out", out, *SMALL)
    outcome = cli("allocate", model, "--allocator", "besa", *options,
                  "--set", "allocators.besa.sequences=2")  # fmt: skip
    assert outcome.code == 0, outcome.err
    stored = json.loads(out.read_text())
    layout, rates = PrunableModel(tiny_llama()).layout, load_file(out.with_suffix(".safetensors"))
    assert set(rates) == {unit.name for unit in layout}
    profile = SparsityProfile.from_json(layout, stored)
    means = [float(rates[unit.name].mean()) for unit in layout]
    np.testing.assert_allclose(means, profile.sparsities, atol=0.05)
    outcome = cli("allocate", model, "--allocator", "gauss_newton", *options,
                  "--set", "allocators.gauss_newton.steps=1")  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "from the start on" in json.loads(out.read_text())["notes"][0]
