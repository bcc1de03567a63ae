from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsity_search.cli.recommend import format_commands
from sparsity_search.plans.methods import Method

from .conftest import SMALL, Outcome

Cli = Callable[..., Outcome]


def given(**options: Any) -> dict[str, Any]:
    nothing = dict.fromkeys(("pruner", "bounds", "calibration", "exclude", "units", "revision",
                             "dtype", "device", "config", "set_"))  # fmt: skip
    base = {"model": "my model", "sparsity": 0.7, "minutes": 5.0, "trust_remote_code": False}
    return {**nothing, **base, **options}


def test_the_recommended_commands_run(cli: Cli, model: Path, text: Path, tmp_path: Path,
                                      monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    options = ("--calibration", f"file:{text}", "--pruner", "sparsegpt", *SMALL)
    outcome = cli("recommend", model, "--minutes", 0, "--sparsity", 0.6, *options)
    assert outcome.code == 0, outcome.err
    for word in ("uniform", "chosen", "knapsack", "time here"):
        assert word in outcome.out
    lines = [line for line in outcome.out.splitlines() if line.startswith("sparsity-search ")]
    assert len(lines) == 2
    for line in lines:
        outcome = cli(*shlex.split(line)[1:])
        assert outcome.code == 0, outcome.err
    assert cli("verify", "pruned", "--profile", "profile.json").code == 0


def test_commands_carry_the_options_on() -> None:
    method = Method(name="owl", allocator="owl")
    options = given(pruner="ria+sparsegpt", bounds=["q=0:0.9"], calibration="self",
                    trust_remote_code=True, set_=["a.b=[1, 2]"])  # fmt: skip
    allocate, prune = (shlex.split(line) for line in format_commands(method, options))
    shared = ["--calibration", "self", "--trust-remote-code", "--set", "a.b=[1, 2]"]
    assert allocate == [
        *("sparsity-search", "allocate", "my model", "--allocator", "owl", "--sparsity", "0.7"),
        *("--set", "pruner.name=ria+sparsegpt", "--bounds", "q=0:0.9", "--out", "profile.json"),
        *shared,
    ]
    assert prune == [
        *("sparsity-search", "prune", "my model", "--profile", "profile.json"),
        *("--pruner", "ria+sparsegpt", "--out", "pruned", *shared),
    ]


def test_a_search_gets_all_the_time() -> None:
    (line,) = format_commands(Method(name="search", rounds=9), given(pruner="wanda"))
    assert shlex.split(line) == [
        *("sparsity-search", "search", "my model", "--sparsity", "0.7", "--pruner", "wanda"),
        *("--minutes", "5", "--out", "searched"),
    ]


def test_refused(cli: Cli, model: Path) -> None:
    outcome = cli("recommend", model, "--minutes", -1)
    assert outcome.code == 2
    assert "--minutes" in outcome.err
    outcome = cli("recommend", model, "--minutes", 1, "--pruner", "flap")
    assert outcome.code == 2
    assert "no measured gains for width" in outcome.err
