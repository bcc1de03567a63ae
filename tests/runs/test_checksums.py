"""A digit that was changed in a file of a run never becomes another result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsity_search.errors import SparsitySearchError
from sparsity_search.profiles.scores import Scores
from sparsity_search.runs.directory import RunDirectory
from sparsity_search.runs.record import RunRecord
from sparsity_search.runs.scores import load_scores, save_scores
from sparsity_search.spaces.hints import Hint
from sparsity_search.spaces.prices import PRICES_JSON, PriceCurve, Prices
from sparsity_search.testing.problems import toy_space
from sparsity_search.testing.runs import build_run_layout, build_run_profiles
from sparsity_search.utils.random import create_generator

SPACE = toy_space()


def build_hint() -> Hint:
    spans = [len(SPACE.limits.of(gene)) for gene in range(SPACE.n_genes)]
    return Hint("fisher", SPACE.limits.lower, tuple(np.arange(span) / 3 for span in spans))


@pytest.fixture
def directory(run_dir: Path) -> RunDirectory:
    """A finished run with stages and a hint."""
    found, profiles = RunDirectory(run_dir), build_run_profiles(build_run_layout())
    found.write_stages(["search-0123456789abcdef"], [{"owl": profiles["owl"]}])
    found.write_hint(1, build_hint(), SPACE)
    return found


READ: dict[str, Callable[[RunDirectory], Any]] = {
    "run.json": lambda run: run.read_config(),
    "results.json": lambda run: run.read_results(),
    "profile.json": lambda run: RunRecord.read(run.path),
    "profiles/owl.json": lambda run: RunRecord.read(run.path),
    "starts.json": lambda run: run.read_starts(build_run_layout()),
    "stages.json": lambda run: run.read_studies(),
    "hints/stage1/fisher.json": lambda run: run.read_hint(1, "fisher", SPACE),
}


def assert_told(file: Path, read: Callable[[], Any]) -> None:
    """Assert that reading refuses each of some changed digits, in one line with the file."""
    read()
    whole = file.read_text()
    places = [place for place, letter in enumerate(whole) if letter.isdigit()]
    for place in create_generator(0, file.name).choice(places, 12, replace=False):
        digit = str((int(whole[place]) + 1) % 10)
        file.write_text(whole[:place] + digit + whole[place + 1 :])
        with pytest.raises(SparsitySearchError) as caught:
            read()
        message = str(caught.value)
        assert str(file) in message
        assert "\n" not in message
    file.write_text(whole)
    read()


@pytest.mark.parametrize("name", READ)
def test_files_of_a_run(directory: RunDirectory, name: str) -> None:
    assert_told(directory.path / name, lambda: READ[name](directory))


def test_scores(tmp_path: Path) -> None:
    n_units = len(SPACE.layout)
    counts = (np.array([0, 10, 20]),) * n_units
    losses = tuple(np.array([0.0, 0.5, 1.25 + unit]) for unit in range(n_units))
    save_scores(tmp_path / "scores.json", Scores(SPACE.layout, counts, losses))
    assert_told(tmp_path / "scores.json", lambda: load_scores(tmp_path / "scores.json"))


def test_prices(tmp_path: Path) -> None:
    curves = [PriceCurve((0, unit.count), (0.0, 1.5)) for unit in SPACE.layout]
    PRICES_JSON.write(tmp_path / "prices.json", Prices(SPACE.layout, "time", curves).to_json())
    assert_told(tmp_path / "prices.json", lambda: PRICES_JSON.read(tmp_path / "prices.json"))
