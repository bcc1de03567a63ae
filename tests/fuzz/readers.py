"""The readers of all that users give: each with a right input, and a call that reads a wrong one.

None loads a model: what needs one is read with a layout of toy units.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sparsity_search.cli.main import main
from sparsity_search.config.load import load_config
from sparsity_search.config.presets import get_preset_file
from sparsity_search.data.sources import Documents
from sparsity_search.engine.plugins import Plugins, build_allocator
from sparsity_search.evaluators.tasks.questions import read_questions
from sparsity_search.profiles.budget import Budget
from sparsity_search.profiles.profile import PROFILE_JSON, SparsityProfile
from sparsity_search.registry import ALLOCATORS, EVALUATORS, FORMATS, PRUNERS, SEARCHERS, Factory
from sparsity_search.report.html import render
from sparsity_search.report.table import list_rows, summarise
from sparsity_search.runs.directory import RunDirectory
from sparsity_search.runs.record import RunRecord
from sparsity_search.searchers.bases.dataset import Dataset, read_dataset
from sparsity_search.spaces.files import ParametricFile, load_space
from sparsity_search.spaces.prices import PRICES_JSON, PriceCurve, Prices
from sparsity_search.spaces.reading import read_space
from sparsity_search.testing.problems import toy_layout, toy_space
from sparsity_search.testing.runs import make_run
from sparsity_search.trials.history import Fidelity
from tests.fuzz.mutations import VALUES, choose_value, make_file, to_json, to_yaml
from tests.helpers.solver_problems import layout_of, random_scores

LAYOUT = toy_layout(40, 60, 40, 60)
SPACE = toy_space()
PROFILE = Budget(0.5).uniform(LAYOUT)
KEYS = (
    *("study.rounds", "study.minutes", "study.seed", "budget.bounds", "ladder.rungs", "initial"),
    *("pruner.name", "pruner", "searcher.strides", "model.roles", "allocators.owl.m", "x.y.z"),
    *("data.search_length", "hints", "evaluator.name", "supernet", "measure", "finalise.name"),
)
NEEDED = {"model.name": "absent", "budget.sparsity": 0.5}


@dataclass(frozen=True)
class Reader:
    """A reader of input.

    Attributes:
        make: Writes a wrong input below a folder, and returns what `read` takes.
        read: Reads it.
    """

    make: Callable[[Path, random.Random], Any]
    read: Callable[[Any], object]


def of_file(
    name: str, value: Any, dump: Callable[[Any], bytes], read: Callable[[Path], object]
) -> Reader:
    """Return the reader of a file called ``name``, whose right contents are ``value``."""

    def make(folder: Path, rng: random.Random) -> Path:
        path = folder / name
        path.write_bytes(make_file(value, dump, rng))
        return path

    return Reader(make, read)


def run(*arguments: object) -> None:
    """Run the command line."""
    before, sys.argv = sys.argv, ["sparsity-search", *map(str, arguments)]
    try:
        main()
    finally:
        sys.argv = before


def read_config(path: Path) -> None:
    Plugins.of(load_config(path, NEEDED))


def read_set(override: str) -> None:
    Plugins.of(load_config(None, NEEDED, [override]))


def build_space(path: Path) -> None:
    file = load_space(str(path))
    if isinstance(file, ParametricFile):
        file.build_parameters()
    space = file.of_levels.build(LAYOUT, Budget(0.5), {})
    space.sample(np.random.default_rng(0))


def read_profile(path: Path) -> None:
    SparsityProfile.from_json(LAYOUT, PROFILE_JSON.read(path))


def read_format(name: str, settings: dict[str, Any], path: Path) -> None:
    FORMATS.create(name, **settings).read(path.read_bytes().decode("utf-8", "replace"), LAYOUT)


def read_run(path: Path) -> None:
    record = RunRecord.read(path.parent)
    list_rows(record)
    summarise(record)
    render(record, {})


def read_hint(path: Path) -> None:
    RunDirectory(path.parents[2]).read_hint(1, "fisher", SPACE)


def read_plugin(given: tuple[Any, str, dict[str, Any]]) -> None:
    registry, name, settings = given
    Factory().create(registry, name, settings)


def make_plugin(_: Path, rng: random.Random) -> tuple[Any, str, dict[str, Any]]:
    registry = rng.choice((ALLOCATORS, EVALUATORS, PRUNERS, SEARCHERS))
    name = rng.choice(registry.names())
    fields = list(registry.get(name).__dataclass_fields__) or ["none"]
    return registry, name, {rng.choice(fields): choose_value(rng)}


def make_set(_: Path, rng: random.Random) -> str:
    key = rng.choice(KEYS)
    if rng.random() < 0.3:
        return f"{key}{rng.choice(('', '=', '=[', '=*a', '=&a [*a]', '={', '==', '=!!x y'))}"
    return f"{key}={to_json(choose_value(rng)).decode()}"


def make_options(folder: Path, rng: random.Random) -> list[str]:
    text = [str(v) for v in VALUES if isinstance(v, str | float | bool) or v is None]
    values = [v for v in text if "\0" not in v] + [str(10**30), "9" * 5000, "-5", "1,,2"]
    options = ("sparsity", "saving", "measure", "space", "pruner", "pattern", "searcher", "set")
    options += ("evaluator", "initial", "hints", "finalise", "calibration", "stages", "rounds")
    options += ("minutes", "seed", "storage", "workers", "bounds", "exclude", "blocks", "units")
    options += ("revision", "dtype", "device", "config", "final-text", "wrong", "out")
    given = [f"--{rng.choice(options)}={rng.choice(values)}" for _ in range(rng.choice((1, 1, 2)))]
    if rng.random() < 0.5:
        given = ["--sparsity=0.5", *given]
    return ["search", str(folder / "absent"), f"--out={folder / 'run'}", *given]


def of_run(base: Path, name: str) -> Reader:
    """Return the reader of a run directory, one of whose files is wrong."""
    right = json.loads((base / name).read_text())

    def make(folder: Path, rng: random.Random) -> Path:
        for path in ("run.json", "results.json", "profile.json", "steps.json"):
            (folder / path).write_bytes((base / path).read_bytes())
        (folder / name).write_bytes(make_file(right, to_json, rng))
        return folder / name

    return Reader(make, read_run)


def make_hint(folder: Path, rng: random.Random) -> Path:
    path = folder / "run" / "hints" / "stage1" / "fisher.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = [len(SPACE.limits.of(gene)) for gene in range(SPACE.n_genes)]
    losses = [[0.5] * n for n in levels]
    hint = {"name": "fisher", "space": SPACE.digest, "losses": losses}
    path.write_bytes(make_file(hint, to_json, rng))
    return path.parents[1] / "stage1" / "fisher.json"


def dump_lines(rows: Any) -> bytes:
    return b"\n".join(map(to_json, rows if isinstance(rows, list) else [rows]))


def build_readers(folder: Path) -> dict[str, Reader]:
    """Return all readers by name.

    Args:
        folder: Place for a run directory that some need.
    """
    run_dir = make_run(folder / "made", rounds=1, finalise="alps")
    scores = random_scores(layout_of([40, 60] * 2, zeros=[0, 2] * 2), 0).to_json()
    curves = [PriceCurve((0, unit.count), (0.0, 1.0)) for unit in LAYOUT]
    prices = Prices(LAYOUT, "time", curves).to_json()
    pairs = [SPACE.profile(SPACE.sample(np.random.default_rng(0))) for _ in range(3)]
    dataset = Dataset(SPACE.layout, pairs, [1.0, 2.0, 3.0], [Fidelity(64)] * 3).to_json()
    ratios = {unit.name: 0.5 for unit in LAYOUT}
    recipe = {"stage": {"SparseGPTModifier": {"sparsity": 0.5, "targets": list(ratios)}}}
    config = yaml.safe_load(get_preset_file("evopress").read_text())
    question = {"question": "a?", "choices": ["b", "c"], "answer": 1}
    levels = {f"x{unit.name}": 0 for unit in LAYOUT}
    return {
        "config": of_file("c.yaml", config, to_yaml, read_config),
        "space": of_file("s.yaml", read_space("per_block"), to_yaml, build_space),
        "parameters": of_file("s.yaml", read_space("owl_grid"), to_yaml, build_space),
        "set": Reader(make_set, read_set),
        "options": Reader(make_options, lambda arguments: run(*arguments)),
        "plugin": Reader(make_plugin, read_plugin),
        "profile": of_file("p.json", PROFILE.to_json(), to_json, read_profile),
        "start": of_file(
            "p.json",
            PROFILE.to_json(),
            to_json,
            lambda path: build_allocator(load_config(None, NEEDED), str(path)),
        ),
        "convert": of_file(
            "p.json",
            PROFILE.to_json(),
            to_json,
            lambda path: run("convert", path, "--out", path.parent / "o.csv", "--sparsity", 0.4),
        ),
        "scores": of_file(
            "s.json",
            {**scores, "pairs": None},
            to_json,
            lambda path: run("solve", path, "--sparsity", 0.5, "--out", path.parent / "o.json"),
        ),
        "prices": of_file(
            "p.json",
            prices,
            to_json,
            lambda path: Prices.from_json(LAYOUT, PRICES_JSON.read(path)).digest,
        ),
        "dataset": of_file(
            "d.json", dataset, to_json, lambda path: read_dataset(path).pairs(SPACE)
        ),
        "hint": Reader(make_hint, read_hint),
        "run": of_run(run_dir, "run.json"),
        "results": of_run(run_dir, "results.json"),
        "steps": of_run(run_dir, "steps.json"),
        "text": of_file(
            "t.jsonl",
            [{"text": "a"}, {"text": "b", "id": 3}],
            dump_lines,
            lambda path: list(Documents(str(path))),
        ),
        "questions": of_file("q.jsonl", [question] * 2, dump_lines, read_questions),
        "owl": of_file("r.yaml", ratios, to_yaml, partial(read_format, "owl", {})),
        "recipe": of_file("r.yaml", recipe, to_yaml, partial(read_format, "llm_compressor", {})),
        "evopress": of_file(
            "l.txt",
            levels,
            to_yaml,
            partial(read_format, "evopress", {"sparsity": 0.5, "step": 2}),
        ),
    }
