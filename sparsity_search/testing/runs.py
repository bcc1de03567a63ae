"""Synthetic run directories without a model, for tests of their readers."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from sparsity_search.profiles.budget import Budget
from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.profiles.profile import PROFILE_JSON, SparsityProfile
from sparsity_search.runs.directory import RunDirectory
from sparsity_search.runs.trail import StepRecord, Trail
from sparsity_search.trials.history import Fidelity, Measurement, Score
from sparsity_search.trials.storages import open_journal
from sparsity_search.trials.store import Store
from sparsity_search.utils.random import create_generator

TARGET = 0.6
RUNGS = ((512, 4), (4096, 1))
_ROLES = {"q": 16, "k": 6, "v": 6, "o": 16, "gate": 43, "up": 43, "down": 43}
_QUALITY = {"uniform": (0.96, 40.0), "owl": (0.84, 35.0), "searched": (0.576, 27.0)}
_PRUNER = {"name": "wanda"}
#: Sequences of the final text.
_SEQUENCES = 8
_SEARCH_SCORES = {"uniform": 0.9, "owl": 0.8}


def build_run_layout(blocks: int = 12) -> Layout:
    """Return a Llama-like layout; one weight in each unit is zero in the dense model."""
    return Layout(
        [
            Unit(name=f"layers.{block}.{role}", block=block, role=role, count=1024 * n, zeros=1)
            for block in range(blocks)
            for role, n in _ROLES.items()
        ]
    )


def build_run_profiles(layout: Layout) -> dict[str, SparsityProfile]:
    """Return a uniform, a smooth and a rugged profile of equal sparsity, by name."""
    depth = np.array([unit.block for unit in layout]) / max(unit.block for unit in layout)
    noise = create_generator(0, "runs").normal(size=len(layout))
    sparsities = {
        "uniform": np.full(len(layout), TARGET),
        "owl": TARGET + 0.1 * (depth - 0.5),
        "searched": TARGET + 0.16 * (depth - 0.5) + 0.04 * noise,
    }
    return {name: Budget(TARGET).project(layout, ratios) for name, ratios in sparsities.items()}


def simulate_measurements(rounds: int, *, fresh: bool = False) -> Iterator[Measurement]:
    """Yield the measurements of a search; one of them failed.

    Round 0 has two at the top rung, each later round 16 and 4 at the two rungs.
    """
    elapsed = 0.0
    for index, score in enumerate(_SEARCH_SCORES.values()):
        elapsed += 2.0
        yield _build_measurement(0, 1, (index, 0), score, 2.0, elapsed, 0)
    source = create_generator(0, "scores")
    for round_ in range(1, rounds + 1):
        for rung, n in enumerate((16, RUNGS[0][1])):
            for index in range(n):
                cost = (0.5, 2.0)[rung]
                elapsed += cost
                score = 0.5 + 0.35 * np.exp(-round_ / 8) + 0.05 * source.random()
                failed = (round_, rung, index) == (1, 0, 3)
                value = float("inf") if failed else float(score)
                subset = round_ if fresh else 0
                yield _build_measurement(
                    round_, rung, (index, round_), value, cost, elapsed, subset
                )


def make_run(
    folder: Path,
    *,
    rounds: int = 10,
    finished: bool = True,
    fresh: bool = False,
    storage: str | None = None,
    finalise: str | None = None,
) -> Path:
    """Write a run directory like that of a search, and return it.

    Args:
        folder: The run directory.
        rounds: Number of rounds of the search.
        finished: Whether to write results and profiles.
        fresh: Whether each round has its own tokens.
        storage: URL of an Optuna storage; by default a journal in the folder.
        finalise: Pruner that rebuilds the best profile and the uniform one at the end.
    """
    layout, directory = build_run_layout(), RunDirectory(folder)
    directory.begin(_build_run(layout, fresh, storage))
    store = Store(storage or open_journal(directory.journal_file), "search", {"seed": 0})
    measurements = list(simulate_measurements(rounds, fresh=fresh))
    for measurement in measurements:
        store.add(measurement)
    if finished:
        steps = build_run_steps(layout, measurements[-1].elapsed, finalise)
        for step in steps:
            directory.write_profile(step.name, step.profile)
        starts = {step.name: step.profile for step in steps[:2]}
        directory.write_stages(["search"], [starts])
        Trail(directory.steps_file, layout).keep(steps, steps[-1].elapsed + 2.0)
        best = [step for step in steps if step.best][-1]
        shipped = {**best.profile.to_json(), "target": TARGET, "seed": 0}
        PROFILE_JSON.write(directory.profile_file, shipped)
        directory.write_results(_build_results(layout, steps, best, rounds, measurements))
    return folder


def build_run_steps(
    layout: Layout, searched: float, finalise: str | None = None
) -> list[StepRecord]:
    """Return the candidates of a search, each better than the ones before it.

    Args:
        layout: The units.
        searched: Seconds of the study.
        finalise: Pruner that rebuilds the best profile and the uniform one; with it the scores
            are half as high.
    """
    profiles, elapsed = build_run_profiles(layout), 30.0
    steps: list[StepRecord] = []
    wanted = [(name, name, _PRUNER) for name in _QUALITY]
    if finalise is not None:
        wanted += [(f"{n}-{finalise}", n, {"name": finalise}) for n in ("searched", "uniform")]
    for name, of, pruner in wanted:
        scale = 1.0 if pruner is _PRUNER else 0.5
        score, perplexity = (scale * value for value in _QUALITY[of])
        seconds = 10.0 + (searched if name == "searched" else 0.0)
        elapsed += seconds
        removed, sparsity = profiles[of].n_removed, profiles[of].sparsity
        row = {"name": name, "score": score, "perplexity": perplexity}
        step = StepRecord(
            name=name,
            key=name,
            profile=profiles[of],
            pruner=pruner,
            row={**row, "sparsity": sparsity, "removed": removed},
            parts=_build_parts(name, score),
            best=all(score < earlier.row["score"] for earlier in steps),
            seconds=seconds,
            elapsed=elapsed,
            notes=[],
        )
        steps.append(step)
    return steps


def _build_parts(name: str, score: float) -> list[float]:
    """Return the scores of sequences, which have the score as their mean."""
    source = create_generator(0, f"parts of {name}")
    parts = score * (1 + 0.1 * source.normal(size=_SEQUENCES))
    return [float(part) for part in parts - parts.mean() + score]


def _build_measurement(
    round_: int,
    rung: int,
    candidate: tuple[int, ...],
    score: float,
    seconds: float,
    elapsed: float,
    subset: int,
) -> Measurement:
    return Measurement(
        round=round_,
        rung=rung,
        candidate=candidate,
        fidelity=Fidelity(RUNGS[rung][0], subset),
        score=Score(score, (score,) if isfinite(score) else ()),
        seconds=seconds,
        elapsed=elapsed,
    )


def _build_run(layout: Layout, fresh: bool, storage: str | None) -> dict[str, Any]:
    model = {"name": "tiny-llama", "revision": None, "digest": "0123456789abcdef"}
    text = {
        purpose: {"source": "self", "sequences": 16, "length": 512, "digest": f"digest-{purpose}"}
        for purpose in ("calibration", "search", "final")
    }
    command = "sparsity-search search tiny-llama --sparsity 0.6"
    return {
        "command": f"{command} --storage {storage}" if storage else command,
        "created": "2026-01-02T03:04:05+00:00",
        "versions": {"sparsity-search": "0.1.0", "torch": "2.9.0"},
        "threads": 2,
        "device": "cpu",
        "dtype": "torch.bfloat16",
        "config": _build_config(fresh, storage),
        "fingerprint": {"model": model["digest"], "layout": layout.digest, "seed": 0},
        "model": model,
        "text": text,
        "layout": layout.to_json(),
    }


def _build_config(fresh: bool, storage: str | None) -> dict[str, Any]:
    rungs = [{"tokens": tokens, "survivors": survivors} for tokens, survivors in RUNGS]
    return {
        "model": {"name": "tiny-llama", "dtype": "auto"},
        "budget": {"sparsity": TARGET, "bounds": {}},
        "data": {"calibration": "self"},
        "space": "per_linear",
        "pruner": _PRUNER,
        "searcher": {"name": "evolution"},
        "evaluator": {"name": "kl_divergence"},
        "initial": ["owl", "uniform"],
        "ladder": {"candidates": 16, "rungs": rungs, "fresh": fresh},
        "supernet": {"propagate": "centre"},
        "study": {"rounds": None, "minutes": 10.0, "seed": 0, "storage": storage},
    }


def _build_results(
    layout: Layout,
    steps: list[StepRecord],
    best: StepRecord,
    rounds: int,
    measurements: list[Measurement],
) -> dict[str, Any]:
    zeros = int(layout.zeros.sum())
    rows = [{"name": "dense", "score": 0.0, "perplexity": 15.6, "sparsity": 0.0, "removed": zeros}]
    for step in steps:
        rows.append({**step.row, "profile": step.profile.digest, "pruner": step.pruner})
    return {
        "evaluator": "kl_divergence",
        "target": TARGET,
        "shipped": best.name,
        "removed": best.profile.n_removed,
        "rows": rows,
        "search": {
            "rounds": rounds,
            "measurements": len(measurements),
            "seconds": measurements[-1].elapsed,
        },
        "seconds": {"load model": 3.2, "build supernet": 71.0, "search": measurements[-1].elapsed},
        "notes": ["layers.0.k: 1 dead input"],
    }
