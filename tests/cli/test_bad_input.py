"""Bad input: one clear line, exit code 2, nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.io.loading import load_model
from sparsity_search.profiles.budget import Budget

from .conftest import SMALL, Outcome

Cli = Callable[..., Outcome]


def refused(outcome: Outcome, *words: str) -> None:
    assert outcome.code == 2, outcome
    assert len(outcome.err.strip().splitlines()[-1:]) == 1
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in outcome.err


SEARCHES = {
    "unknown pruner": (["--pruner", "wnada"], ["wnada", "'wanda'"]),
    "unknown searcher": (["--searcher", "evolutoin"], ["'evolution'"]),
    "unknown evaluator": (["--evaluator", "kl"], ["kl_divergence"]),
    "unknown allocator": (["--initial", "owl,unifrom"], ["'uniform'"]),
    "unknown space": (["--space", "per_blok"], ["'per_block'"]),
    "sparsity of one": (["--sparsity", "1"], ["between 0 and 1"]),
    "sparsity of zero": (["--sparsity", "0"], ["between 0 and 1"]),
    "negative sparsity": (["--sparsity", "-0.5"], ["between 0 and 1"]),
    "infeasible bounds": (["--bounds", "up=0.0:0.1", "--bounds", "down=0:0.1"], ["0 to 0.599826"]),
    "bounds of no role": (["--bounds", "upp=0:1"], ["'up'"]),
    "bounds upside down": (["--bounds", "up=0.9:0.1"], ["LOW <= HIGH"]),
    "bounds of no form": (["--bounds", "up=a"], ["ROLE=LOW:HIGH"]),
    "missing text": (["--calibration", "file:absent.txt"], ["absent.txt"]),
    "unknown source": (["--calibration", "corpus"], ["file:PATH"]),
    "unknown key": (["--set", "study.sed=1"], ["study.sed", "'seed'"]),
    "unknown setting": (["--set", "searcher.stride=1"], ["'strides'"]),
    "no value": (["--set", "study.seed"], ["section.key=value"]),
    "bad value": (["--set", "study.rounds=many"], ["study.rounds"]),
    "no regular expression": (["--exclude", "("], ["regular expression"]),
    "everything excluded": (["--exclude", "."], ["matches all 21 units"]),
    "nothing excluded": (["--exclude", "q_porj"], ["matches none", "'q_proj'"]),
    "rung too long": (["--set", "ladder.rungs=[{tokens: 9999, survivors: 1}]"], ["9999"]),
    "no such config": (["--config", "absent.yaml"], ["absent.yaml"]),
    "bad storage": (["--storage", "nonsense"], ["storage"]),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_refuses(cli: Cli, model: Path, text: Path, tmp_path: Path, name: str) -> None:
    options, words = SEARCHES[name]
    if "--calibration" not in options:
        options = ["--calibration", f"file:{text}", *options]
    out = tmp_path / "run"
    outcome = cli("search", model, "--sparsity", "0.6", "--out", out, *SMALL, *options)
    refused(outcome, *words)
    assert len(outcome.err.strip().splitlines()) <= 3, outcome.err  # the line, after two steps
    assert not out.exists()


@pytest.mark.parametrize("name", ["absent/model/here", "./absent", "absent.gguf"])
def test_an_unknown_model_is_refused(cli: Cli, tmp_path: Path, name: str) -> None:
    refused(cli("search", name, "--sparsity", 0.6, "--out", tmp_path / "run"), "absent")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "word"), [("", "no text"), ("short", "fewer than one sequence")]
)
def test_text_that_is_not_enough_is_refused(
    cli: Cli, model: Path, tmp_path: Path, content: str, word: str
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(content)
    out = tmp_path / "run"
    options = ("--sparsity", 0.6, "--calibration", f"file:{text}", "--out", out, *SMALL)
    refused(cli("search", model, *options), word)
    assert not out.exists()


def test_a_folder_of_something_else_is_refused(cli: Cli, model: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    refused(cli("search", model, "--sparsity", 0.6, "--out", tmp_path), "not empty")
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


@pytest.fixture
def profile(model: Path, tmp_path: Path) -> Path:
    layout = PrunableModel(load_model(str(model)).model).layout
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(Budget(0.5).uniform(layout).to_json()))
    return path


def spoiled(profile: Path, key: str, value: object) -> None:
    stored = json.loads(profile.read_text())
    stored[key] = value
    profile.write_text(json.dumps(stored))


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda p: p.write_text("{"), "corrupt"),
        (lambda p: p.write_text("[]"), "not a sparsity profile"),
        (lambda p: p.write_text("{}"), "not a sparsity profile"),
        (lambda p: p.unlink(), "cannot read"),
        (lambda p: spoiled(p, "format", 99), "format 99"),
        (lambda p: spoiled(p, "removed", 1), "do not add up"),
        (lambda p: spoiled(p, "units", {}), "another model"),
    ],
)
def test_a_bad_profile_is_refused(
    cli: Cli, model: Path, profile: Path, spoil: Callable[[Path], None], word: str
) -> None:
    spoil(profile)
    out = profile.parent / "pruned"
    refused(cli("prune", model, "--profile", profile, "--out", out, *SMALL), word)
    assert not out.exists()
    refused(cli("verify", model, "--profile", profile), word)


def test_a_checkpoint_that_is_not_the_profile_is_refused(
    cli: Cli, model: Path, profile: Path
) -> None:
    refused(cli("verify", model, "--profile", profile), "zeros")


def test_profile_and_sparsity_together_are_refused(cli: Cli, model: Path, profile: Path) -> None:
    options = ("--profile", profile, "--sparsity", 0.5, "--out", profile.parent / "out")
    refused(cli("prune", model, *options), "not both")


def test_neither_profile_nor_sparsity_is_refused(cli: Cli, model: Path, tmp_path: Path) -> None:
    refused(cli("prune", model, "--out", tmp_path / "out"), "--sparsity")


def test_a_report_of_no_run_is_refused(cli: Cli, tmp_path: Path) -> None:
    refused(cli("report", tmp_path), "run.json")


def test_rungs_are_checked_before_the_model_is_loaded(
    cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = "sparsity_search.engine.opening.open_session"
    monkeypatch.setattr(target, lambda *_, **__: pytest.fail("the model was loaded"))
    rungs = "ladder.rungs=[{tokens: 500, survivors: 1}]"
    options = ("--sparsity", 0.5, "--out", tmp_path / "out", "--set", rungs)
    refused(cli("search", model, *options), "500 tokens is not a whole number of sequences of 512")


def test_an_unknown_list_is_refused(cli: Cli) -> None:
    refused(cli("ls", "prunners"), "'pruners'")


@pytest.mark.parametrize(
    "command",
    [
        ("inspect",),
        ("evaluate", "--text", "self"),
        ("prune", "--sparsity", "0.5", "--out", "out"),
        ("search", "--sparsity", "0.5", "--out", "out"),
        ("allocate", "--allocator", "owl", "--sparsity", "0.5", "--out", "out.json"),
        ("sensitivity", "--out", "out.json"),
        ("recommend", "--minutes", "1"),
        ("compare", "--allocators", "owl", "--sparsity", "0.5", "--out", "out"),
    ],
)
def test_blocks_that_do_not_exist(cli: Cli, model: Path, command: tuple[str, ...]) -> None:
    outcome = cli(command[0], model, *command[1:], "--blocks", "absent")
    assert outcome.code == 2
    assert "--blocks 'absent' matches no module list" in " ".join(outcome.err.split())
