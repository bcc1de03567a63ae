"""Searchers beside each other at equal evaluation tokens, on SmolLM2-135M: docs/search.md.

One case is one search; cases of a group have the same ladder, text and number of rounds, hence
the same tokens. A search resumes from its journal, and what a case came to is kept in
``OUT/CASE.json``:

    python benchmarks/searchers.py --calibration wikipedia_calibration.jsonl \
        --test wikitext2_valid.txt --out runs/searchers \
        --table benchmarks/results/searchers.json
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tables import counts_in, known_profile, slug, write_table  # the file beside this one

from sparsity_search.cli.terminal import TerminalMonitor, silence_libraries
from sparsity_search.config.load import load_config
from sparsity_search.engine.job import SearchJob
from sparsity_search.engine.opening import open_job
from sparsity_search.engine.stages import run_stages
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.registry import EVALUATORS
from sparsity_search.runs.record import RunRecord, load_stages, trace_scores
from sparsity_search.utils.files import compute_digest, write_json

#: About six minutes on a busy core: 12 offspring a round, 14,336 tokens at most.
ROUNDS = 24

WEIGHTS: dict[str, Any] = {"budget.sparsity": 0.7, "pruner.name": "sparsegpt"}
WIDTH: dict[str, Any] = {
    "budget.sparsity": 0.25,
    "pruner": {"name": "structured_obs", "linear_term": True},
    "model.units": "width",
    "space": "eighths",
    "supernet.propagate": "expectation",
    "searcher": {"name": "evolution", "max_switches": 4, "strides": [1]},
}


#: New tokens each round: the parent is measured again, and nothing is fitted to few sequences.
FRESH: dict[str, Any] = {"ladder.fresh": True, "data.search_sequences": 48}

#: Starts that take minutes, from the comparison of allocators: same text, seed and pruner.
KNAPSACK = "sparsegpt-70-knapsack-seed{seed}"
GAUSS_NEWTON = "sparsegpt-70-gauss_newton_start=cfsp-seed{seed}"


@dataclass(frozen=True)
class Case:
    """One search: what its group has in common, and what it changes."""

    group: dict[str, Any]
    changes: dict[str, Any] = field(default_factory=dict)
    stages: int = 1
    initial: tuple[str, ...] = ("uniform",)

    def options(self, seed: int, out: Path) -> dict[str, Any]:
        initial = [start_of(start.format(seed=seed), out) for start in self.initial]
        rounds = {"study.stages": self.stages, "study.rounds": ROUNDS // self.stages}
        return {
            **self.group,
            "study.seed": seed,
            "initial": initial,
            **rounds,
            **self.changes,
        }


def start_of(name: str, out: Path) -> str:
    """Return an allocator, or the file of a profile that the comparison of allocators found."""
    if name == "uniform":
        return name
    file = out / "starts" / f"{slug(name)}.json"
    write_json(file, known_profile(name).to_json())
    return str(file)


CASES = {
    "random": Case(WEIGHTS, {"searcher": {"name": "random"}}),
    "evolution": Case(WEIGHTS),
    "evolution, strides 1": Case(WEIGHTS, {"searcher": {"name": "evolution", "strides": [1]}}),
    "evolution, gradients": Case(WEIGHTS, {"hints": ["gradients"]}),
    "evolution, 3 stages": Case(WEIGHTS, stages=3),
    "evolution, 3 stages, gradients": Case(WEIGHTS, {"hints": ["gradients"]}, stages=3),
    "predictor": Case(WEIGHTS, {"searcher": {"name": "predictor"}}),
    "predictor, gradients": Case(
        WEIGHTS, {"searcher": {"name": "predictor"}, "hints": ["gradients"]}
    ),
    "tpe, depth spline": Case(WEIGHTS, {"searcher": {"name": "optuna"}, "space": "depth_spline"}),
    "from knapsack": Case(WEIGHTS, initial=(KNAPSACK, "uniform")),
    "from knapsack, gradients": Case(
        WEIGHTS, {"hints": ["gradients"]}, initial=(KNAPSACK, "uniform")
    ),
    "from knapsack, gradients, 2 stages, fresh": Case(
        WEIGHTS, {"hints": ["gradients"], **FRESH}, stages=2, initial=(KNAPSACK, "uniform")
    ),
    "from gauss_newton, gradients, fresh": Case(
        WEIGHTS, {"hints": ["gradients"], **FRESH}, initial=(GAUSS_NEWTON, "uniform")
    ),
    "from gauss_newton, gradients, 2 stages, fresh": Case(
        WEIGHTS, {"hints": ["gradients"], **FRESH}, stages=2, initial=(GAUSS_NEWTON, "uniform")
    ),
    "from gauss_newton": Case(WEIGHTS, initial=(GAUSS_NEWTON, "uniform")),
    "from gauss_newton, gradients": Case(
        WEIGHTS, {"hints": ["gradients"]}, initial=(GAUSS_NEWTON, "uniform")
    ),
    "from gauss_newton, gradients, uniform centre": Case(
        WEIGHTS,
        {"hints": ["gradients"], "supernet.propagate": "centre"},
        initial=(GAUSS_NEWTON, "uniform"),
    ),
    "tyr": Case(WIDTH, stages=4),
    "tyr, one fine stage": Case(WIDTH, {"space": "sixty_fourths"}),
    "tyr, no accumulation": Case(WIDTH, {"supernet.propagate": "dense"}, stages=4),
    "tyr, plain mixing": Case(WIDTH, {"supernet.propagate": "mean"}, stages=4),
    "tyr, centre": Case(WIDTH, {"supernet.propagate": "centre"}, stages=4),
    "tyr, within roles": Case(
        WIDTH,
        {"searcher": {"name": "evolution", "max_switches": 4, "strides": [1], "within": "role"}},
        stages=4,
    ),
}


def run_case(name: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what a case came to, from its file or from its search."""
    label = slug(f"{name}, seed {seed}")
    file = arguments.out / f"{label}.json"
    if file.exists():
        known: dict[str, Any] = json.loads(file.read_text())
        return known
    options = {
        "model.name": "smollm2",
        "data.calibration": f"file:{arguments.calibration}",
        "data.calibration_sequences": 32,
        "data.final_text": f"file:{arguments.test}",
        "data.final_sequences": 40,
        "supernet.cache": str(arguments.out / "supernets"),
        **CASES[name].options(seed, arguments.out),
    }
    started = time.process_time()
    with TerminalMonitor(ROUNDS) as monitor:
        job = open_job(load_config(None, options), arguments.out / "runs" / label, monitor)
        with job.directory.lock():
            searched = run_stages(job, command=["benchmarks/searchers.py"])
        if searched is None:
            raise SystemExit(1)
        known = {Path(name).stem: profile for name, profile in searched.starts.items()}
        profiles = {**known, "searched": searched.profile}
        perplexities = {which: kept_perplexity(job, found) for which, found in profiles.items()}
    found = {
        "case": name,
        "seed": seed,
        "dtype": str(job.session.loaded.model.dtype),
        "perplexities": perplexities,
        **told(job.directory.path),
        "cpu_seconds": time.process_time() - started,
        "stages": monitor.seconds,
    }
    write_json(file, found)
    write_json(arguments.out / "profiles" / f"{label}.json", searched.profile.to_json())
    return found


def kept_perplexity(job: SearchJob, profile: SparsityProfile) -> float:
    """Return `perplexity`, or what an earlier case found: many have the same start."""
    key = {
        "profile": profile.digest,
        "pruner": repr(job.plugins.final),
        "seed": job.config.study.seed,
        "dtype": str(job.session.loaded.model.dtype),
    }
    file = job.directory.path.parents[1] / "perplexities" / f"{compute_digest(key)}.json"
    if not file.exists():
        write_json(file, {**key, "perplexity": perplexity(job, profile)})
    return float(json.loads(file.read_text())["perplexity"])


def perplexity(job: SearchJob, profile: SparsityProfile) -> float:
    """Return the perplexity of the model pruned sequentially to a profile."""
    subject, model, text = job.session.subject, job.session.loaded.model, job.session.text
    with subject.preserved():
        with job.monitor.step("rebuild", len(subject.blocks)) as advance:
            seed, pruner = job.config.study.seed, job.plugins.final
            tokens = text["calibration"]
            prune_sequentially(subject, profile, pruner, tokens, seed=seed, on_block=advance)
        with job.monitor.step("perplexity"):
            proxy = EVALUATORS.create("perplexity").bind(model, text["final"])
            return proxy.score(model, range(len(text["final"]))).value


def told(run: Path) -> dict[str, Any]:
    """Return each stage's best score of the top rung against tokens, and what was read in all."""
    top_rung, curves, before = RunRecord.read(run).top_rung, [], 0
    measured = [stage.measurements for stage in load_stages(run)]
    for measurements in measured:
        falls, read = trace_scores(measurements, top_rung), before
        tokens = [read := read + measurement.fidelity.tokens for measurement in measurements]
        points = zip(falls.evaluations, falls.scores, strict=True)
        curves.append([[tokens[number - 1], score] for number, score in points])
        before = tokens[-1]
    return {
        "proxy": curves[-1][-1][1],
        "tokens": before,
        "search_seconds": measured[-1][-1].elapsed,
        "curves": curves,
    }


def table_of(out: Path) -> dict[str, Any]:
    """Return the rows and the profiles of all cases that are done."""
    profiles = counts_in(out / "profiles")
    rows = [json.loads((out / f"{label}.json").read_text()) for label in profiles]
    return {"rows": rows, "profiles": profiles}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("calibration", "test", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--table", type=Path, help="write the table of all cases in --out here")
    parser.add_argument("--case", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    silence_libraries()
    print("| case | seed | start | searched | proxy | tokens | search s | CPU s |", flush=True)
    for seed in arguments.seeds:
        for name in arguments.case:
            found = run_case(name, seed, arguments)
            *starts, searched = found["perplexities"].values()
            cells = [
                *(name, seed, f"{min(starts):.1f}", f"{searched:.1f}", f"{found['proxy']:.3f}"),
                *(found["tokens"], f"{found['search_seconds']:.0f}"),
                f"{found['cpu_seconds']:.0f}",
            ]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    if arguments.table:
        write_table(arguments.table, table_of(arguments.out))


if __name__ == "__main__":
    main()
