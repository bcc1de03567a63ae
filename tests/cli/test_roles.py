"""Roles of a family that the package does not know, from the configuration alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from sparsity_search.models.io.saving import save_checkpoint
from sparsity_search.runs.record import load_measurements
from sparsity_search.testing.models import tiny_tokenizer
from tests.helpers.odd_model import ROLES, odd_model

from .conftest import SMALL, Outcome

Cli = Callable[..., Outcome]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "odd"
    save_checkpoint(odd_model(), tiny_tokenizer(), folder)
    return folder


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "odd.yaml"
    file.write_text(yaml.safe_dump({"model": {"roles": ROLES}}))
    return file


def roles_by_unit(folder: Path) -> dict[str, str]:
    units = json.loads((folder / "profile.json").read_text())["units"]
    return {name: unit["role"] for name, unit in units.items()}


def test_inspect_shows_the_roles(cli: Cli, odd: Path, config: Path) -> None:
    outcome = cli("inspect", odd, "--config", config)
    assert outcome.code == 0, outcome.err
    for name, role in (("modulate", "gate"), ("expand", "up"), ("squash", "down")):
        assert f" {name} " not in outcome.out
        assert f" {role} " in outcome.out


@pytest.mark.parametrize("units", ["weights", "width"])
def test_prune(cli: Cli, odd: Path, config: Path, text: Path, tmp_path: Path, units: str) -> None:
    pruner = {"weights": "wanda", "width": "wanda_sp"}[units]
    out = tmp_path / "pruned"
    outcome = cli("prune", odd, "--config", config, "--pruner", pruner, "--units", units,
                  "--sparsity", 0.25, "--calibration", f"file:{text}", "--out", out,
                  *SMALL)  # fmt: skip
    assert outcome.code == 0, outcome.err
    found = set(roles_by_unit(out).values())
    if units == "weights":
        assert found == {"q", "k", "v", "o", "gate", "up", "down"}
    else:
        assert found == {"attention", "feed_forward"}
    outcome = cli("verify", out, "--profile", out / "profile.json", "--config", config)
    assert outcome.code == 0, outcome.err


def test_a_space_groups_by_the_roles(
    cli: Cli, odd: Path, config: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    search = ("search", odd, "--sparsity", 0.5, "--space", "per_role", "--rounds", 1, "--out", out,
              "--calibration", f"file:{text}", "--set", "initial=[uniform]", *SMALL)  # fmt: skip
    outcome = cli(*search, "--config", config)
    assert outcome.code == 0, outcome.err
    assert set(roles_by_unit(out).values()) == {"q", "k", "v", "o", "gate", "up", "down"}
    # one level for each role, over all blocks
    assert {len(found.candidate) for found in load_measurements(out)} == {7}
    outcome = cli(*search)
    assert outcome.code != 0  # the roles are part of the run's identity
    assert "model.roles" in outcome.err


@pytest.mark.parametrize(
    ("roles", "word"),
    [
        pytest.param({"mixer": "gate"}, "mixer", id="matches nothing"),
        pytest.param({"up(": "up"}, "up(", id="no expression"),
        pytest.param({"expand": "up", "and$": "gate"}, "expand", id="two roles"),
        pytest.param({"expand": ""}, "expand", id="no role"),
    ],
)
def test_wrong_patterns_are_one_line(
    cli: Cli, odd: Path, roles: dict[str, str], word: str
) -> None:
    outcome = cli("inspect", odd, "--set", f"model.roles={json.dumps(roles)}")
    assert outcome.code != 0
    (line,) = outcome.err.strip().splitlines()[-1:]
    assert word in line
    assert "model.roles" in line
