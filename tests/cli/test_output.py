"""What commands print: for people, quietly, or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sparsity_search.cli.output import OUTPUT, with_output
from sparsity_search.testing.runs import make_run

from .conftest import SMALL, Outcome

Cli = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    """Tests run several commands in this process."""
    yield
    OUTPUT.quiet = OUTPUT.verbose = OUTPUT.json = False


def test_the_version_is_told(cli: Cli) -> None:
    outcome = cli("--version")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("sparsity-search 0.")


def test_a_result_is_one_json_object(cli: Cli, model: Path, text: Path, tmp_path: Path) -> None:
    given = ("--calibration", f"file:{text}", *SMALL[:4])
    profile, pruned = tmp_path / "profile.json", tmp_path / "pruned"
    allocated = json.loads(
        cli("allocate", model, "--sparsity", 0.5, *given, "--out", profile, "--json").out
    )
    assert allocated["profile"] == str(profile)
    assert allocated["removed"] == json.loads(profile.read_text())["removed"]
    made = json.loads(
        cli("prune", model, "--profile", profile, *given, "--out", pruned, "--json", "-q").out
    )
    assert (made["checkpoint"], made["hub"]) == (str(pruned), None)
    assert made["removed"] == allocated["removed"]
    verified = json.loads(cli("verify", pruned, "--json").out)
    assert verified["removed"] == allocated["removed"]
    scored = json.loads(
        cli("evaluate", pruned, "--text", f"file:{text}", "--length", 16, "--json").out
    )
    assert scored["evaluator"] == "perplexity"
    assert scored["score"] > 1
    assert scored["sparsity"] == pytest.approx(0.5, abs=0.01)


def test_a_search_as_json(cli: Cli, model: Path, text: Path, tmp_path: Path) -> None:
    given = (model, "--sparsity", 0.5, "--calibration", f"file:{text}", *SMALL)
    planned = json.loads(cli("search", *given, "--rounds", 1, "--dry-run", "--json").out)
    assert planned["steps"][0]["name"] == "uniform"
    out = tmp_path / "run"
    found = json.loads(cli("search", *given, "--rounds", 1, "--out", out, "--json").out)
    assert found["finished"]
    assert found["checkpoint"] == str(out / "checkpoint")
    assert found["steps"][0]["name"] == "uniform"
    assert found["shipped"] in {row["name"] for row in found["rows"]}
    again = json.loads(cli("report", out, "--json").out)
    assert again["rows"] == found["rows"]


def test_several_runs_as_json_have_numbers(cli: Cli, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, rounds=1) for name in "ab"]
    out = tmp_path / "both.html"
    found = json.loads(cli("report", *runs, "--out", out, "--json").out)
    assert found["report"] == str(out)
    assert found["runs"]["a"]["rows"][1]["score"] == 0.96
    alone = cli("report", runs[0], "--out", out)
    assert alone.code == 2
    assert "--out is for several runs" in alone.err


def test_quiet_shows_no_progress(cli: Cli, model: Path, text: Path, tmp_path: Path) -> None:
    given = (model, "--sparsity", 0.5, "--calibration", f"file:{text}", *SMALL[:4])
    loud = cli("prune", *given, "--pruner", "magnitude", "--out", tmp_path / "one")
    quiet = cli("prune", *given, "--pruner", "magnitude", "--out", tmp_path / "two", "-q")
    assert "load model" in loud.err
    assert quiet.err == ""
    assert quiet.out.replace("/two", "/one") == loud.out


def test_verbose_shows_where_an_error_arose(cli: Cli, tmp_path: Path) -> None:
    plain = cli("report", tmp_path / "none")
    told = cli("report", tmp_path / "none", "-v")
    assert len(plain.err.splitlines()) == 1
    assert "Traceback" in told.err
    assert told.err.splitlines()[-1] == plain.err.splitlines()[0]
    assert (plain.code, told.code) == (2, 2)


def test_an_error_is_no_json(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("report", tmp_path / "none", "--json")
    assert (outcome.code, outcome.out) == (2, "")


def test_lists_and_plugins_as_json(cli: Cli) -> None:
    found = json.loads(cli("ls", "plans", "--json").out)
    assert "weights" in found["plans"]


def test_values_that_json_has_not(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> dict[str, object]:
        return {"path": Path("a/b"), "scores": (1.5, float("inf")), "names": {"x": None}}

    with_output(command)(quiet=False, verbose=False, json_=True)
    assert json.loads(capsys.readouterr().out) == {
        "path": "a/b",
        "scores": [1.5, None],
        "names": {"x": None},
    }


def test_help_has_its_options_in_parts(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = cli("search", "--help").out
    first = text.partition("Budget and space")[0]
    for option in ("--sparsity", "--minutes", "--calibration", "--plan", "--out", "--dry-run"):
        assert option in first
    for option in ("--searcher", "--workers", "--exclude", "--json"):
        assert option not in first
        assert option in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_wrong_model_is_refused_before_torch_is_imported(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "sparsity_search.workflow.search", None)  # import fails
    missing = cli("search", tmp_path / "modle", "--sparsity", "0.5")
    assert missing.code == 2
    assert f"there is no model folder or .gguf file {tmp_path / 'modle'}" in missing.err


def test_a_near_model_is_told(cli: Cli) -> None:
    outcome = cli("search", "smolm2", "--sparsity", "0.5")
    assert outcome.code == 2
    assert "did you mean 'smollm2'?" in outcome.err


@pytest.mark.usefixtures("any_model")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("search", "m", "--config", "evopres", "--sparsity", "0.5"), "did you mean 'evopress'?"),
        (("search", "m", "--plan", "weigths", "--sparsity", "0.5"), "did you mean 'weights'?"),
    ],
)
def test_near_names_are_told(cli: Cli, arguments: tuple[str, ...], told: str) -> None:
    outcome = cli(*arguments)
    assert outcome.code == 2
    assert told in outcome.err


def test_near_files_are_told(cli: Cli, model: Path, tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text("{}")
    outcome = cli("prune", model, "--profile", tmp_path / "profil.json", "--out", tmp_path / "o")
    assert outcome.code == 2
    assert f"did you mean {tmp_path / 'profile.json'}?" in outcome.err


def test_plugins_in_the_working_folder_are_found(
    cli: Cli, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_plugins_here.py").write_text(
        "from dataclasses import dataclass\n"
        "import numpy as np\n"
        "from sparsity_search import Allocator\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Flat(Allocator):\n"
        '    """The same sparsity everywhere."""\n'
        "    def propose(self, problem):\n"
        "        return np.full(len(problem.layout), problem.target)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    given = ("--sparsity", 0.5, "--calibration", f"file:{text}", *SMALL[:4])
    outcome = cli(
        "allocate", model, "--allocator", "my_plugins_here:Flat", *given, "--out", "flat.json"
    )
    assert outcome.code == 0, outcome.err
    found = json.loads((tmp_path / "flat.json").read_text())
    assert found["sparsity"] == pytest.approx(0.5, abs=0.01)
