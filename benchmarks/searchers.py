"""Searchers beside each other at equal evaluation tokens, on SmolLM2-135M: docs/search.md.

One case is one search; cases of a group have the same ladder, text and number of rounds, hence
the same tokens. A search resumes from its journal, and what a case came to is kept in
``OUT/CASE.json``:

    python benchmarks/searchers.py --calibration wikipedia_calibration.jsonl \
        --test wikitext2_valid.txt --out runs/searchers
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sparsity_search.artefacts import write_json
from sparsity_search.cli.terminal import TerminalMonitor, quiet_libraries
from sparsity_search.config import load_config
from sparsity_search.report.record import RunRecord, curve
from sparsity_search.workflow.search import search

#: About ten minutes of search on two cores: 12 offspring a round, 14,336 tokens at most.
ROUNDS = 30

WEIGHTS: dict[str, Any] = {"budget.sparsity": 0.7, "pruner.name": "sparsegpt"}
WIDTH: dict[str, Any] = {
    "budget.sparsity": 0.25,
    "pruner": {"name": "structured_obs", "linear_term": True},
    "model.units": "width",
    "space": "eighths",
    "supernet.propagate": "expectation",
    "searcher": {"name": "evolution", "max_switches": 4, "strides": [1]},
}


@dataclass(frozen=True)
class Case:
    """One search: what its group has in common, and what it changes."""

    group: dict[str, Any]
    changes: dict[str, Any] = field(default_factory=dict)
    stages: int = 1
    initial: tuple[str, ...] = ("uniform",)

    def options(self) -> dict[str, Any]:
        rounds = {"study.stages": self.stages, "study.rounds": ROUNDS // self.stages}
        return {**self.group, "initial": list(self.initial), **rounds, **self.changes}


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
    "from knapsack": Case(WEIGHTS, initial=("knapsack", "uniform")),
    "from gauss_newton": Case(WEIGHTS, initial=("gauss_newton", "uniform")),
    "from gauss_newton, gradients": Case(
        WEIGHTS, {"hints": ["gradients"]}, initial=("gauss_newton", "uniform")
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
    label = f"{name}, seed {seed}"
    file = arguments.out / f"{label}.json"
    if file.exists():
        known: dict[str, Any] = json.loads(file.read_text())
        return known
    case, run = CASES[name], arguments.out / "runs" / label
    options = {
        "model.name": "smollm2",
        "data.calibration": f"file:{arguments.calibration}",
        "data.calibration_sequences": 32,
        "data.final_text": f"file:{arguments.test}",
        "data.final_sequences": 40,
        "study.seed": seed,
        **case.options(),
    }
    started = time.process_time()
    with TerminalMonitor(ROUNDS) as monitor:
        search(
            load_config(None, options), run, command=["benchmarks/searchers.py"], monitor=monitor
        )
    record = RunRecord.read(run)
    rows = {row["name"]: row for row in (record.results or {})["rows"]}
    falls = curve(record.measurements, record.top_rung)
    tokens = [m.fidelity.tokens for m in record.measurements]
    found = {
        "case": name,
        "seed": seed,
        "perplexity": rows["searched"]["perplexity"],
        "uniform": rows["uniform"]["perplexity"],
        "starts": {n: row["perplexity"] for n, row in rows.items() if n != "searched"},
        "proxy": falls.scores[-1],
        "tokens": sum(tokens),
        "search_seconds": record.results and record.results["search"]["seconds"],
        "cpu_seconds": time.process_time() - started,
        "curve": [
            [sum(tokens[:number]), score]
            for number, score in zip(falls.evaluations, falls.scores, strict=True)
        ],
    }
    write_json(file, found)
    shutil.rmtree(run / "checkpoint")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("calibration", "test", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--case", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    quiet_libraries()
    print("| case | seed | uniform | searched | proxy | tokens | search s | CPU s |", flush=True)
    for seed in range(arguments.seeds):
        for name in arguments.case:
            found = run_case(name, seed, arguments)
            cells = [
                *(name, seed, f"{found['uniform']:.1f}", f"{found['perplexity']:.1f}"),
                *(f"{found['proxy']:.3f}", found["tokens"]),
                *(f"{found['search_seconds']:.0f}", f"{found['cpu_seconds']:.0f}"),
            ]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
