"""Searches whose budget is in operations or time, on a tiny random model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsity_search.measures import latency
from sparsity_search.utils.reading import read_json

from .conftest import SMALL, Outcome

Cli = Callable[..., Outcome]


def search(cli: Cli, model: Path, out: Path, *more: object, rounds: int = 2) -> Outcome:
    return cli(
        "search", model, "--saving", 0.25, "--pruner", "wanda_sp", "--space", "eighths",
        "--rounds", rounds, "--out", out, "--dtype", "float32", *SMALL, *more,
    )  # fmt: skip


def saved(run: Path, profile: dict[str, Any]) -> float:
    """Return the share of all prices that a profile saves, from the file of prices."""
    units = read_json(run / "prices.json")["units"]
    total = sum(unit["saved"][-1] for unit in units.values())
    found = 0.0
    for name, unit in units.items():
        removed = profile["units"][name]["removed"]
        found += unit["saved"][-1] * removed / unit["removed"][-1]  # operations: straight lines
    return found / total


def test_a_search_in_operations(cli: Cli, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    outcome = search(cli, model, out, "--measure", "flops", "--set", "measure.length=4096")
    assert outcome.code == 0, outcome.err
    assert "of flops" in outcome.out
    results, profile = read_json(out / "results.json"), read_json(out / "profile.json")
    assert results["target_saving"] == profile["target_saving"] == 0.25
    rows = {row["name"]: row for row in results["rows"]}
    assert list(rows) == ["dense", "uniform", "cfsp", "searched"]
    for name in ("uniform", "cfsp"):
        stored = read_json(out / "profiles" / f"{name}.json")
        assert rows[name]["saving"] == pytest.approx(saved(out, stored), abs=1e-3)
        assert 0.25 <= rows[name]["saving"] < 0.25 + 1 / 6  # a key-value group of three blocks
    assert profile["saving"] == pytest.approx(saved(out, profile), abs=1e-3)
    assert profile["saving"] != pytest.approx(profile["sparsity"], abs=0.01)
    assert "25.00 % saving of flops" in (out / "report.html").read_text()
    # more rounds of the same search; and its prices as a file for another
    assert search(
        cli, model, out, "--measure", "flops", "--set", "measure.length=4096", rounds=3
    ).code == 0  # fmt: skip
    # its measurements teach a predictor, by the levels of a space with prices
    outcome = cli("predictor", out, "--out", tmp_path / "pairs.json")
    assert outcome.code == 0, outcome.err
    again = tmp_path / "again"
    outcome = search(cli, model, again, "--measure", out / "prices.json")
    assert outcome.code == 0, outcome.err
    assert read_json(again / "prices.json") == read_json(out / "prices.json")
    mine = read_json(again / "profiles" / "uniform.json")["units"]
    assert mine == read_json(out / "profiles" / "uniform.json")["units"]


def test_time_is_measured_once(
    cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on keeps its prices: times are never the same twice."""
    calls: list[int] = []

    def seconds(model: Any, tokens: Any) -> float:
        calls.append(tokens.numel())
        return float(model.num_parameters() + 7 * (len(calls) % 5))

    monkeypatch.setattr(latency, "_measure_seconds", seconds)
    out, options = tmp_path / "run", ("--measure", "latency", "--set", "measure.points=2")
    assert search(cli, model, out, *options).code == 0
    times, prices = len(calls), read_json(out / "prices.json")
    assert times > 0
    outcome = search(cli, model, out, *options, rounds=3)
    assert outcome.code == 0, outcome.err
    assert len(calls) == times
    assert read_json(out / "prices.json") == prices


OWN = ("--measure", "tests.helpers.measures:PackedMeasure")


def test_single_weights_in_a_measure(cli: Cli, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    outcome = cli(
        "search", model, "--saving", 0.4, *OWN, "--pruner", "wanda", "--space", "per_linear",
        "--initial", "uniform", "--rounds", 2, "--out", out, "--dtype", "float32", *SMALL,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    profile = read_json(out / "profile.json")
    units = profile["units"].values()
    bits = sum(max(0, 16 * (unit["removed"] - unit["of"] // 16)) for unit in units)
    dense = sum(16 * (unit["of"] - unit["of"] // 16) for unit in units)
    assert profile["saving"] == pytest.approx(bits / dense, abs=1e-3)
    assert 0.4 - 1e-3 <= profile["saving"] < 0.41
    removed, weights = (sum(unit[key] for unit in units) for key in ("removed", "of"))
    assert profile["sparsity"] == pytest.approx(removed / weights, abs=1e-6)


def test_patterns_in_a_measure(cli: Cli, model: Path, tmp_path: Path) -> None:
    """2:4 saves more bits than 4:8, whose places need more; another search reads both."""
    space = tmp_path / "space.yaml"
    space.write_text(
        "version: 1\ndescription: x\ngene: [name]\noptions: ['4:8', '2:4']\nreach: 2\n"
    )
    common = (
        "search", model, "--saving", 0.42, "--pruner", "wanda", "--space", space, "--initial",
        "uniform", "--rounds", 1, "--dtype", "float32", *SMALL,
    )  # fmt: skip
    outcome = cli(*common, *OWN, "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    profile = read_json(tmp_path / "run" / "profile.json")
    saving = {"2:4": 7 / 15, "4:8": 6.5 / 15, "": 0.0}
    units = profile["units"].values()
    expected = sum(saving[unit.get("pattern", "")] * unit["of"] for unit in units)
    assert profile["saving"] == pytest.approx(expected / profile["weights"], abs=1e-3)
    assert profile["saving"] >= 0.42
    assert {unit.get("pattern", "") for unit in units} > {""}
    prices = tmp_path / "run" / "prices.json"
    outcome = cli(*common, "--measure", prices, "--out", tmp_path / "again")
    assert outcome.code == 0, outcome.err
    assert read_json(tmp_path / "again" / "profile.json")["units"] == profile["units"]
    for options, words in {
        (): "name a measure with --measure",
        ("--measure", "flops"): "needs --units width",
    }.items():
        outcome = cli(*common, *options, "--out", tmp_path / "refused")
        assert outcome.code == 2
        assert words in " ".join(outcome.err.split())


def test_a_front_of_savings(cli: Cli, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "front"
    outcome = cli(
        "front", model, "--saving", "0.2,0.4", "--measure", "flops", "--pruner", "wanda_sp",
        "--space", "eighths", "--initial", "uniform", "--rounds", 1, "--out", out,
        "--set", "model.dtype=float32", *SMALL,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    found = read_json(out / "front.json")
    assert {row["target"] for row in found["rows"]} == {0.2, 0.4}
    assert all(row["saving"] >= row["target"] for row in found["rows"])
    assert found["hypervolume"] > 0
    assert "saving" in (out / "front.csv").read_text().partition("\n")[0]


REFUSED = {
    "a sparsity": (["--sparsity", 0.5, "--measure", "flops"], "give --saving"),
    "no saving": (["--measure", "flops"], "give --saving, e.g. --saving 0.25"),
    "no measure": (["--saving", 0.2], "or with --measure"),
    "unknown": (["--saving", 0.2, "--measure", "flop"], "unknown measure 'flop'"),
    "setting": (
        ["--saving", 0.2, "--measure", "flops", "--set", "measure.batch=2"],
        "has no setting 'batch'",
    ),
    "no file": (["--saving", 0.2, "--measure", "none.json"], "cannot read none.json"),
    "weights": (
        ["--saving", 0.2, "--measure", "flops", "--pruner", "wanda"],
        "needs --units width",
    ),
    "patterns": (
        ["--saving", 0.2, "--measure", "flops", "--space", "dense_or_sparse"],
        "has patterns: leave out --measure",
    ),
    "too much": (
        ["--saving", 0.5, "--measure", "flops", "--bounds", "attention=0:0.1"],
        "saving 0.5 is out of reach",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(cli: Cli, model: Path, tmp_path: Path, name: str) -> None:
    options, words = REFUSED[name]
    out = tmp_path / "run"
    outcome = cli(
        "search", model, "--pruner", "wanda_sp", "--out", out, "--rounds", 0, *SMALL, *options
    )
    assert outcome.code == 2, outcome
    assert words in " ".join(outcome.err.split())
    assert not out.exists()


def test_a_front_has_one_kind_of_budget(cli: Cli, model: Path, tmp_path: Path) -> None:
    for options in ((), ("--sparsity", "0.2,0.3", "--saving", "0.2,0.3")):
        outcome = cli("front", model, "--out", tmp_path / "front", *options)
        assert outcome.code == 2
        assert "either --sparsity or --saving" in outcome.err
