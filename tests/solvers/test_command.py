from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sparsity_search.allocators.knapsack import KnapsackAllocator
from sparsity_search.cli.main import main
from sparsity_search.errors import ConfigError, ProfileError
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.profiles.scores import Scores
from sparsity_search.runs.scores import load_scores, save_scores
from tests.helpers.solver_problems import layout_of, random_scores
from tests.solvers.test_pairs import with_pairs

FACTS = {
    "model": {"name": "tiny", "digest": "abc"},
    "removes": "weights",
    "pruner": {"name": "magnitude"},
    "sensitivity": {"name": "fisher", "draws": 3},
    "text": {"calibration": {"source": "self"}},
    "seed": 5,
}

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sparsity-search", "solve", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        captured = capsys.readouterr()
        return int(exit_.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def scores() -> Scores:
    layout = layout_of([400, 80, 1000, 336] * 2, zeros=[0, 5, 0, 0] * 2)
    return replace(random_scores(layout, 0, convex=True), facts=FACTS)


@pytest.fixture
def file(scores: Scores, tmp_path: Path) -> Path:
    path = tmp_path / "made" / "scores.json"
    save_scores(path, scores)
    return path


def solved(scores: Scores, target: float) -> SparsityProfile:
    return KnapsackAllocator().solve(scores, Budget(target), Bounds.of(scores.layout)).profile


def test_saved_scores_solve_to_the_same_profile(scores: Scores, tmp_path: Path) -> None:
    paired, path = with_pairs(scores, 0), tmp_path / "scores.json"
    save_scores(path, paired)
    again = load_scores(path)
    assert again.pairs is not None
    assert again.pairs.tobytes() == paired.pairs.tobytes()  # type: ignore[union-attr]
    assert again.facts == FACTS
    budget, bounds = Budget(0.7), Bounds.of(scores.layout)
    for knapsack in (KnapsackAllocator(), KnapsackAllocator(use_pairs=True, step=0.05)):
        one, other = (knapsack.solve(s, budget, bounds).profile for s in (again, paired))
        assert one == other
    assert sorted(f.name for f in tmp_path.iterdir()) == ["scores.json", "scores.safetensors"]


def test_pairs_of_other_scores_are_refused(scores: Scores, tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    save_scores(path, with_pairs(scores, 0))
    kept = path.read_text()
    save_scores(path, with_pairs(scores, 1))
    path.write_text(kept)
    with pytest.raises(ProfileError, match="pairs of other scores"):
        load_scores(path)
    save_scores(path, scores)  # without pairs: those that lie there are not its own
    assert load_scores(path).pairs is None
    path.write_text(kept)
    path.with_suffix(".safetensors").write_bytes(b"nonsense")
    with pytest.raises(ProfileError, match="cannot be read"):
        load_scores(path)
    path.with_suffix(".safetensors").unlink()
    with pytest.raises(ProfileError, match="cannot be read"):
        load_scores(path)
    with pytest.raises(ConfigError, match="JSON file"):
        save_scores(tmp_path / "scores.safetensors", scores)


@pytest.mark.parametrize("allocator", ["knapsack", "greedy", "lagrangian"])
def test_writes_a_profile_with_its_facts(
    cli: Cli, scores: Scores, file: Path, tmp_path: Path, allocator: str
) -> None:
    out = tmp_path / "profile.json"
    code, told, _ = cli(file, "--sparsity", 0.55, "--out", out, "--allocator", allocator)
    assert code == 0
    value = json.loads(out.read_text())
    found = SparsityProfile.from_json(scores.layout, value)
    assert found.n_removed == Budget(0.55).n_removed(scores.layout)
    for key in ("model", "removes", "pruner", "sensitivity", "text"):
        assert value[key] == FACTS[key]
    assert value["target"] == 0.55
    for part in (allocator.capitalize(), "Magnitude(", "draws=3", "seed=5"):
        assert part in value["allocator"]
    assert f"predicted loss {scores.loss(found):.6g}" in value["notes"][0]
    assert str(found.n_removed) in told
    assert value["notes"][0] in told


def test_several_budgets(cli: Cli, scores: Scores, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "profiles"
    code, told, _ = cli(file, "--sparsity", "0.3,0.55,0.8", "--out", out)
    assert code == 0
    assert len(told.strip().splitlines()) == 3
    for target in (0.3, 0.55, 0.8):
        value = json.loads((out / f"profile-{target}.json").read_text())
        found = SparsityProfile.from_json(scores.layout, value)
        assert found == solved(scores, target)
    assert cli(file, "--sparsity", 0.4, "--out", out)[0] == 0  # the folder is there now
    assert (out / "profile-0.4.json").exists()


def test_bounds_and_settings(cli: Cli, scores: Scores, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "profile.json"
    limits = "allocators.knapsack.limits={u: [0.1, 0.2]}"
    code, _, _ = cli(
        file, "--sparsity", 0.4, "--out", out, "--bounds", "q=0.5:0.6", "--set", limits
    )
    assert code == 0
    found = SparsityProfile.from_json(scores.layout, json.loads(out.read_text()))
    assert 0.1 <= np.array(found.removed)[[2, 6]].sum() / 2000 <= 0.2
    assert all(0.5 <= found.sparsities[i] <= 0.6 for i in (0, 4))


PATTERN = 'allocators.knapsack.pruner={name: wanda, pattern: "2:4"}'
BAD = {
    "no such file": (["absent.json", "--sparsity", "0.5"], "absent.json"),
    "sparsity of one": (["FILE", "--sparsity", "0.5,1"], "between 0 and 1"),
    "no number": (["FILE", "--sparsity", "half"], "needs numbers"),
    "one twice": (["FILE", "--sparsity", "0.5,0.5"], "different"),
    "bounds": (["FILE", "--sparsity", "0.6", "--bounds", "u=0:0.1"], "to 0.504"),
    "no role": (["FILE", "--sparsity", "0.5", "--bounds", "up=0:0.1"], "no unit has the role"),
    "other allocator": (["FILE", "--sparsity", "0.5", "--allocator", "owl"], "knapsack, greedy"),
    "no allocator": (["FILE", "--sparsity", "0.5", "--allocator", "napsack"], "'knapsack'"),
    "setting": (["FILE", "--sparsity", "0.5", "--set", "allocators.knapsack.stp=1"], "'step'"),
    "limits": (
        ["FILE", "--sparsity", "0.6", "--set", "allocators.knapsack.limits={u: [0, 0.1]}"],
        "to 0.504",
    ),
    "pattern": (
        ["FILE", "--sparsity", "0.5,0.6", "--set", PATTERN],
        "to 0.5 ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(cli: Cli, file: Path, tmp_path: Path, name: str) -> None:
    arguments, words = BAD[name]
    given = [str(file) if a == "FILE" else a for a in arguments]
    code, _, err = cli(*given, "--out", tmp_path / "out")
    assert code == 2, err
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_out_that_does_not_fit(cli: Cli, file: Path, tmp_path: Path) -> None:
    code, _, err = cli(file, "--sparsity", "0.5,0.6", "--out", tmp_path / "profile.json")
    assert (code, "name a folder" in err) == (2, True)


@pytest.mark.parametrize("content", ["[]", "{}", "nonsense", '{"format": 9}'])
def test_a_file_without_scores(cli: Cli, tmp_path: Path, content: str) -> None:
    path = tmp_path / "scores.json"
    path.write_text(content)
    code, _, err = cli(path, "--sparsity", "0.5", "--out", tmp_path / "out.json")
    assert code == 2
    assert "score" in err or "corrupt" in err
