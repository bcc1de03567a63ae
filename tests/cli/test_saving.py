"""A search that chooses between dense, 4:8 and 2:4, through the command line."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from sparsity_search.config.load import load_config
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.io.loading import load_model
from sparsity_search.workflow.search import search as run_search
from tests.helpers.json_files import change_json

from .conftest import SMALL, Outcome

Cli = Callable[..., Outcome]
SHARE = {"": 0.0, "4:8": 0.25, "2:4": 0.5}


def search(cli: Cli, model: Path, out: Path, *more: object) -> Outcome:
    space = ("--space", "dense_or_sparse", "--saving", 0.2)
    return cli("search", model, "--out", out, "--rounds", 3, *space, *SMALL, *more)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def kept(weight: torch.Tensor, size: int) -> set[int]:
    return set((weight != 0).reshape(-1, size).sum(dim=1).tolist())


def check(run: Path, sources: str) -> Counter[str]:
    """Check checkpoint against profile, and profile against budget; return units by pattern."""
    stored, results = read(run / "profile.json"), read(run / "results.json")
    weights = AutoModelForCausalLM.from_pretrained(run / "checkpoint").state_dict()
    saved, removed, found = 0, 0, Counter[str]()
    for name, unit in stored["units"].items():
        weight, pattern = weights[f"{name}.weight"], unit.get("pattern", "")
        found[pattern] += 1
        expected = {"": (8, {8}), "4:8": (8, {4}), "2:4": (4, {2})}[pattern]
        assert kept(weight, expected[0]) == expected[1], name
        saved += round(SHARE[pattern] * weight.numel())
        removed += int((weight == 0).sum())
    rows = {row["name"]: row for row in results["rows"]}
    shipped = rows[results["shipped"]]
    assert results["target_saving"] == stored["target_saving"] == 0.2
    assert shipped["saving"] == stored["saving"] == saved / stored["weights"]
    assert 0.2 <= shipped["saving"] < 0.2 + 0.25 * 4096 / stored["weights"]
    assert (shipped["removed"], shipped["sparsity"]) == (removed, removed / stored["weights"])
    assert shipped["sparsity"] > shipped["saving"]
    assert rows["dense"]["saving"] == 0
    assert all(row["saving"] >= 0.2 for name, row in rows.items() if name != "dense")
    assert list(rows) == ["dense", "uniform", *sources.split(), "searched"]
    return found


@pytest.fixture(scope="module")
def run(model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run for all tests that only read it."""
    out = tmp_path_factory.mktemp("saving") / "run"
    options = {
        "model.name": str(model), "space": "dense_or_sparse", "budget.saving": 0.2,
        "study.rounds": 3, "data.calibration": f"file:{text}",
    }  # fmt: skip
    run_search(load_config(None, options, SMALL[1::2]), out)
    return out


def test_what_is_shipped(run: Path) -> None:
    found = check(run, "cfsp")
    assert len(found) >= 2
    assert any(found[pattern] for pattern in ("2:4", "4:8"))


def test_all_profiles_are_within_the_budget(run: Path) -> None:
    mixtures = set()
    for file in (run / "profiles").iterdir():
        units = read(file)["units"].values()
        saved = sum(round(SHARE[u.get("pattern", "")] * u["of"]) for u in units)
        total = sum(u["of"] for u in units)
        assert saved >= round(0.2 * total)
        mixtures |= {u.get("pattern", "") for u in units}
    assert mixtures == set(SHARE)


def test_the_report_says_both(cli: Cli, run: Path) -> None:
    outcome = cli("report", run)
    results = read(run / "results.json")
    row = next(row for row in results["rows"] if row["name"] == results["shipped"])
    for text in (outcome.out, (run / "report.html").read_text()):
        assert f"{100 * row['saving']:.2f} %" in text
        assert f"{100 * row['sparsity']:.2f} %" in text
    assert "units dense" in outcome.out.replace("\n", " ")
    assert "20.00 % saving" in (run / "report.html").read_text()


def test_verify_reads_the_groups(cli: Cli, run: Path, tmp_path: Path) -> None:
    profile = run / "profile.json"
    assert cli("verify", run / "checkpoint", "--profile", profile).code == 0
    stored = read(profile)
    name = next(name for name, unit in stored["units"].items() if unit.get("pattern") == "4:8")
    stored["units"][name]["pattern"] = "2:4"  # equally many zeros, elsewhere
    shutil.copy(profile, tmp_path / "other.json")
    change_json(tmp_path / "other.json", units=stored["units"])
    outcome = cli("verify", run / "checkpoint", "--profile", tmp_path / "other.json")
    assert outcome.code != 0
    assert f"{name} does not have the profile's pattern 2:4" in outcome.err.replace("\n", " ")


def test_prune_with_the_profile(
    cli: Cli, run: Path, model: Path, text: Path, tmp_path: Path
) -> None:
    profile, out = run / "profile.json", tmp_path / "again"
    small = (*SMALL, "--calibration", f"file:{text}")
    assert cli("prune", model, "--profile", profile, "--out", out, *small).code == 0
    first, second = (load_model(str(folder)).model for folder in (run / "checkpoint", out))
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    units = read(out / "profile.json")["units"]
    assert units == read(profile)["units"]
    outcome = cli("prune", model, "--profile", profile, "--out", tmp_path / "dass", *small,
                  "--pruner", "dass")  # fmt: skip
    assert outcome.code == 2
    assert "dass cannot prune" in outcome.err


def test_a_supernet_on_disk(cli: Cli, model: Path, tmp_path: Path) -> None:
    options = ("--pruner", "wanda+refit", "--initial", "uniform", "--set", "supernet.store=disk")
    for rounds in (1, 2):  # made, and read
        outcome = search(cli, model, tmp_path / "run", *options, "--rounds", rounds)
        assert outcome.code == 0, outcome.err
    check(tmp_path / "run", "")


def test_limits_of_zeros_bind_the_space_and_not_the_allocators(
    cli: Cli, model: Path, tmp_path: Path
) -> None:
    """At least 0.67 of all must go, which is no sparsity of 0.2, but with 4:8 saves only 0.17."""
    dense, sparse = ("q", "o"), ("up", "down", "gate")
    limits = [f"--bounds={role}=0:0.1" for role in dense]
    limits += [f"--bounds={role}=0.5:0.5" for role in sparse]
    outcome = search(cli, model, tmp_path / "run", *limits)
    assert outcome.code == 0, outcome.err
    check(tmp_path / "run", "cfsp")
    for unit in read(tmp_path / "run/profile.json")["units"].values():
        assert unit["role"] not in dense or "pattern" not in unit
        assert unit["role"] not in sparse or "pattern" in unit


def test_inspect(cli: Cli, model: Path) -> None:
    outcome = cli("inspect", model, "--space", "dense_or_sparse", "--saving", 0.2, *SMALL)
    assert outcome.code == 0, outcome.err
    assert "supernet:" in outcome.out


REFUSED = {
    "no measure": ([], "has options"),
    "a sparsity": (["--sparsity", 0.5], "give --saving"),
    "both": (["--sparsity", 0.5, "--saving", 0.2], "no --sparsity"),
    "too much": (["--saving", 0.6], "saving 0.6 is out of reach: the options allow 0 to 0.5"),
    "nothing": (["--saving", 0], "budget.saving"),
    "all": (["--saving", 1], "budget.saving"),
    "another space": (
        ["--saving", 0.2, "--space", "per_block"],
        "leave it out and give",
    ),
    "structures": (["--saving", 0.2, "--pruner", "flap"], "flap has no patterns"),
    "groups of outputs": (["--saving", 0.2, "--pruner", "dass"], "dass cannot prune"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(cli: Cli, model: Path, tmp_path: Path, name: str) -> None:
    options, words = REFUSED[name]
    out = tmp_path / "run"
    outcome = cli(
        "search",
        model,
        "--space",
        "dense_or_sparse",
        "--out",
        out,
        "--rounds",
        0,
        *SMALL,
        *options,
    )
    assert outcome.code == 2, outcome
    assert words in " ".join(outcome.err.split())
    assert not out.exists()


@pytest.mark.parametrize("command", ["inspect", "search"])
def test_a_measure_is_asked_for(cli: Cli, model: Path, command: str) -> None:
    outcome = cli(command, model, "--space", "dense_or_sparse", *SMALL)
    assert outcome.code == 2
    assert "give --s" in outcome.err


def test_other_jobs_refuse_a_saving(cli: Cli, model: Path, tmp_path: Path) -> None:
    saving = ("--set", "budget.saving=0.2", "--out", tmp_path / "out")
    outcome = cli("prune", model, *saving, *SMALL)
    assert outcome.code == 2
    assert "only for a search" in outcome.err


def test_the_checkpoint_loads_as_any(run: Path) -> None:
    subject = PrunableModel(load_model(str(run / "checkpoint")).model)
    stored = read(run / "profile.json")
    assert subject.zeros().n_removed == stored["removed"]
