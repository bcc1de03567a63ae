"""The main job through the command line, on a tiny random model, with the network blocked."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from sparsity_search.config.load import load_config
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.session import open_session, request_calibration
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.io.loading import load_model
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.registry import PRUNERS

from .conftest import SMALL, Outcome

Cli = Callable[..., Outcome]


def search(cli: Cli, model: Path, out: Path, *more: object) -> Outcome:
    return cli(
        "search", model, "--sparsity", 0.6, "--rounds", 4, "--out", out, "--dtype", "float32",
        *SMALL, *more,
    )  # fmt: skip


@pytest.fixture
def finished(cli: Cli, model: Path, tmp_path: Path) -> Path:
    outcome = search(cli, model, tmp_path / "run")
    assert outcome.code == 0, outcome.err
    return tmp_path / "run"


def test_a_search_leaves_a_whole_run_directory(finished: Path) -> None:
    names = {path.name for path in finished.iterdir() if not path.name.startswith(".")}
    assert names == {
        "artifacts",
        *("run.json", "results.json", "profile.json", "journal.log", "report.html"),
        *("stages.json", "starts.json", "steps.json"),
        *("checkpoint", "plots", "profiles"),
    }
    run = json.loads((finished / "run.json").read_text())
    assert run["config"]["budget"]["sparsity"] == 0.6
    assert {"torch", "transformers", "optuna", "sparsity-search"} <= run["versions"].keys()
    digests = [entry["digest"] for entry in run["text"].values()]
    assert len(set(digests)) == 3, "calibration, search and final text must differ"


def test_the_table_compares_profiles_of_equal_sparsity(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    rows = {row["name"]: row for row in results["rows"]}
    assert list(rows) == ["dense", "uniform", "cfsp", "searched"]
    assert {rows[name]["removed"] for name in ("uniform", "cfsp", "searched")} == {16589}
    assert rows["dense"]["score"] == pytest.approx(0.0, abs=1e-6)
    pruned = {name: row["score"] for name, row in rows.items() if name != "dense"}
    assert results["shipped"] == min(pruned, key=lambda name: pruned[name])


def test_the_checkpoint_is_the_profile_exactly(finished: Path, model: Path) -> None:
    loaded = load_model(str(finished / "checkpoint"), dtype="float32")
    subject = PrunableModel(loaded.model)
    stored = json.loads((finished / "profile.json").read_text())
    profile = SparsityProfile.from_json(subject.layout, stored)
    assert subject.zeros().removed == profile.removed
    assert profile.n_removed == round(0.6 * profile.layout.n_weights)


def test_the_checkpoint_gives_the_logits_of_the_pruned_model(finished: Path, model: Path) -> None:
    """Rebuilt here from the recorded profile, and reloaded with plain transformers."""
    run = json.loads((finished / "run.json").read_text())
    config = load_config(None, {"model.name": str(model), "model.dtype": "float32"})
    config = config.model_validate({**run["config"], "model": config.model.model_dump()})
    session = open_session(config.model, [request_calibration(config.data)], 0, Monitor())
    stored = json.loads((finished / "profile.json").read_text())
    profile = SparsityProfile.from_json(session.subject.layout, stored)
    text = session.text["calibration"]
    prune_sequentially(session.subject, profile, PRUNERS.create("wanda"), text)
    reloaded = AutoModelForCausalLM.from_pretrained(finished / "checkpoint", dtype=torch.float32)
    with torch.inference_mode():
        expected = session.loaded.model(input_ids=text[:2]).logits
        assert torch.equal(reloaded(input_ids=text[:2]).logits, expected)


def test_the_same_command_gives_the_same_profile_byte_for_byte(
    cli: Cli, model: Path, finished: Path, tmp_path: Path
) -> None:
    assert search(cli, model, tmp_path / "again").code == 0
    first, second = ((d / "profile.json").read_bytes() for d in (finished, tmp_path / "again"))
    assert first == second


@pytest.mark.slow
def test_another_seed_searches_elsewhere(
    cli: Cli, model: Path, finished: Path, tmp_path: Path
) -> None:
    assert search(cli, model, tmp_path / "other", "--seed", 1).code == 0
    searched = [
        json.loads((d / "profiles" / "searched.json").read_text())["units"]
        for d in (finished, tmp_path / "other")
    ]
    assert searched[0] != searched[1]


def test_a_finished_search_goes_on_with_more_rounds(
    cli: Cli, model: Path, finished: Path, tmp_path: Path
) -> None:
    longer = ("--rounds", 7)
    assert search(cli, model, finished, *longer).code == 0
    assert search(cli, model, tmp_path / "straight", *longer).code == 0
    first, second = ((d / "profile.json").read_bytes() for d in (finished, tmp_path / "straight"))
    assert first == second


def test_another_configuration_is_refused_by_its_keys(
    cli: Cli, model: Path, finished: Path
) -> None:
    before = sorted((p, p.stat().st_mtime_ns) for p in finished.rglob("*"))
    outcome = search(cli, model, finished, "--pruner", "magnitude", "--seed", 3)
    assert outcome.code == 2
    assert "pruner.name (wanda → magnitude)" in outcome.err
    assert "study.seed (0 → 3)" in outcome.err
    assert sorted((p, p.stat().st_mtime_ns) for p in finished.rglob("*")) == before


@pytest.mark.parametrize("pruner", ["wanda", "sparsegpt", "wanda+refit"])
def test_a_supernet_on_disk_gives_the_profile_of_one_in_memory(
    cli: Cli, model: Path, tmp_path: Path, pruner: str
) -> None:
    disk = ("--set", "supernet.store=disk")
    assert search(cli, model, tmp_path / "memory", "--pruner", pruner).code == 0
    assert search(cli, model, tmp_path / "disk", "--pruner", pruner, *disk).code == 0
    assert search(cli, model, tmp_path / "disk", "--pruner", pruner, *disk).code == 0  # reread
    assert (tmp_path / "disk" / "supernet" / "manifest.json").exists()
    first, second = ((tmp_path / d / "profile.json").read_bytes() for d in ("memory", "disk"))
    assert first == second


@pytest.mark.slow
def test_shared_prefixes_change_nothing(cli: Cli, model: Path, tmp_path: Path) -> None:
    found = []
    for mib in (0, 1024):
        out = tmp_path / str(mib)
        assert search(cli, model, out, "--set", f"supernet.prefix_mib={mib}").code == 0
        results = json.loads((out / "results.json").read_text())
        found.append((results["rows"], (out / "profile.json").read_bytes()))
    assert found[0] == found[1]


@pytest.mark.slow
def test_searches_share_supernets_by_what_these_depend_on(
    cli: Cli, model: Path, tmp_path: Path
) -> None:
    def searched(name: str, *options: str) -> tuple[bytes, dict[Path, int]]:
        """Return a search's profile, and when each file of the cache was written."""
        shared = ("--stages", 2, "--set", f"supernet.cache={tmp_path / 'cache'}", *options)
        assert search(cli, model, tmp_path / name, *shared).code == 0
        profile = (tmp_path / name / "profile.json").read_bytes()
        files = (tmp_path / "cache").glob("*/block-*")
        return profile, {file: file.stat().st_mtime_ns for file in files}

    alone = search(cli, model, tmp_path / "alone", "--stages", 2)
    first, written = searched("first")
    second, again = searched("second")
    assert alone.code == 0
    assert first == second == (tmp_path / "alone" / "profile.json").read_bytes()
    assert again == written
    assert not (tmp_path / "first" / "supernet").exists()
    _, more = searched("third", "--searcher", "random", "--set", "pruner.name=magnitude")
    assert written.items() < more.items()


def test_a_cache_that_is_a_file(cli: Cli, model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    outcome = search(cli, model, tmp_path / "run", "--set", f"supernet.cache={tmp_path / 'file'}")
    assert outcome.code == 2
    assert "supernet.cache" in outcome.err


def test_bounds_and_exclusions_hold_in_the_checkpoint(
    cli: Cli, model: Path, tmp_path: Path
) -> None:
    limits = ("--bounds", "q=0.2:0.4", "--exclude", r"layers\.0\..*up_proj")
    assert search(cli, model, tmp_path / "run", *limits).code == 0
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    layout = Layout.from_json(run["layout"])
    stored = json.loads((tmp_path / "run" / "profile.json").read_text())
    profile = SparsityProfile.from_json(layout, stored)
    assert not any("layers.0.mlp.up_proj" in unit.name for unit in layout)
    for unit, sparsity in zip(layout, profile.sparsities, strict=True):
        assert unit.role != "q" or 0.2 <= sparsity <= 0.4
    assert profile.n_removed == round(0.6 * layout.n_weights)
    assert cli("verify", tmp_path / "run" / "checkpoint", "--profile",
               tmp_path / "run" / "profile.json", "--exclude", limits[-1]).code == 0  # fmt: skip


def command(model: Path, out: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "sparsity_search", "search", str(model), "--sparsity", "0.6"),
        *("--rounds", "40", "--out", str(out), "--dtype", "float32", *SMALL),
    ]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def lines(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


@pytest.mark.slow
def test_killed_at_five_moments_and_resumed_gives_the_same_profile(
    model: Path, tmp_path: Path
) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    subprocess.run(command(model, straight), env=environment(), check=True, capture_output=True)
    total = lines(straight / "journal.log")
    for moment in sorted(random.Random(0).sample(range(2, total), 5)):
        process = subprocess.Popen(
            command(model, killed), env=environment(), stderr=subprocess.DEVNULL
        )
        while process.poll() is None and lines(killed / "journal.log") < moment:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert lines(killed / "journal.log") < total, "it was never killed inside the search"
    subprocess.run(command(model, killed), env=environment(), check=True, capture_output=True)
    first, second = ((d / "profile.json").read_bytes() for d in (straight, killed))
    assert first == second


def read_results(run: Path) -> Any:
    return json.loads((run / "results.json").read_text())


@pytest.mark.slow
def test_an_interrupt_ships_the_best_so_far_and_can_be_resumed(
    model: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    endless = [*command(model, run), "--rounds", "100000"]
    process = subprocess.Popen(endless, env=environment(), stderr=subprocess.PIPE, text=True)
    while process.poll() is None and lines(run / "journal.log") < 20:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    stopped = read_results(run)
    assert stopped["shipped"] in ("uniform", "cfsp")
    assert (run / "checkpoint" / "model.safetensors").exists()
    subprocess.run(
        [*command(model, run), "--rounds", "1"], env=environment(), check=True, capture_output=True
    )
    names = [row["name"] for row in read_results(run)["rows"]]
    assert names == [*(row["name"] for row in stopped["rows"]), "searched"]


SPACES = {
    "groups": ("--pattern", "2:4", "--space", "two_of_four", "--sparsity", "0.25"),
    "eighths": ("--pattern", "*:8", "--space", "n_of_eight", "--sparsity", "0.4"),
    "width": ("--pruner", "flap", "--sparsity", "0.3"),
    "sublayers": ("--pruner", "drop", "--units", "sublayers", "--sparsity", "0.4"),
}


@pytest.mark.parametrize("name", SPACES)
def test_what_is_removed(cli: Cli, model: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "run"
    options = ("--rounds", 2, "--initial", "uniform", *SPACES[name])
    outcome = cli("search", model, "--out", out, *SMALL, *options)
    assert outcome.code == 0, outcome.err
    assert cli("verify", out / "checkpoint", "--profile", out / "profile.json").code == 0
    rows = json.loads((out / "results.json").read_text())["rows"]
    dense, *others = (row["score"] for row in rows)
    assert dense == pytest.approx(0, abs=1e-6)
    assert all(score is not None and score > 0 for score in others)
    target = float(SPACES[name][-1])
    assert all(row["sparsity"] >= target - 1e-9 for row in rows[1:])


def test_a_searcher_tells_how_it_went(cli: Cli, model: Path, tmp_path: Path) -> None:
    settings = ("--searcher", "predictor", "--set", "searcher.startup=4", "--hints", "layer_error")
    assert search(cli, model, tmp_path / "run", *settings).code == 0
    notes = json.loads((tmp_path / "run" / "results.json").read_text())["notes"]
    assert any("tau" in note.lower() for note in notes)
