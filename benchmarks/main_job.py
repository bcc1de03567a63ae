"""Perplexity of uniform, OWL and searched profiles on SmolLM2-135M: docs/search.md.

One case is one search. Every figure is kept in ``OUT/CASE/figures.json`` once it is known, and
the search keeps its own journal, so the script goes on where it was stopped:

    python benchmarks/main_job.py --calibration wikipedia_calibration.jsonl \
        --held-out wikipedia_heldout.jsonl --test wikitext2_valid.txt --out runs/main_job
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import optuna
import torch

from sparsity_search.config.load import load_config
from sparsity_search.config.schema import RunConfig
from sparsity_search.data.sequences import Request
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.session import Session, open_session, request_calibration
from sparsity_search.profiles.budget import Budget
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.registry import EVALUATORS, PRUNERS
from sparsity_search.runs.record import RunRecord
from sparsity_search.spaces.files import load_space
from sparsity_search.utils.files import write_json
from sparsity_search.workflow.search import search


@dataclass(frozen=True)
class Case:
    pruner: str
    sparsity: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.pruner}-{self.sparsity}-seed{self.seed}"


CASES = [
    Case("wanda", 0.6, 0),
    Case("wanda", 0.6, 1),
    Case("wanda", 0.6, 2),
    Case("sparsegpt", 0.7, 0),
]


def configuration(case: Case, arguments: argparse.Namespace) -> RunConfig:
    return load_config(
        None,
        {
            "model.name": "smollm2",
            "budget.sparsity": case.sparsity,
            "pruner.name": case.pruner,
            "initial": ["owl", "uniform"],
            "data.calibration": f"file:{arguments.calibration}",
            "data.final_text": f"file:{arguments.held_out}",
            "data.final_sequences": 8,
            "study.seed": case.seed,
            "study.minutes": max(arguments.minutes),
        },
        arguments.set,
    )


def best_at(run: Path, minutes: float, config: RunConfig) -> SparsityProfile:
    """Return the best profile on the top rung that was known after some minutes."""
    record = RunRecord.read(run)
    top = config.ladder.top
    known = [m for m in record.measurements if m.rung == top and m.elapsed <= 60 * minutes]
    best = min(known, key=lambda m: m.score.value)
    space = load_space(config.space).build(record.layout, Budget(config.budget.sparsity), {})
    return space.profile(best.candidate)


def perplexity(session: Session, case: Case, profile: SparsityProfile | None) -> float:
    """Return the perplexity on the test text of the model pruned sequentially."""
    with session.subject.preserved():
        if profile is not None:
            pruner = PRUNERS.create(case.pruner)
            text = session.text["calibration"]
            prune_sequentially(session.subject, profile, pruner, text, seed=case.seed)
        proxy = EVALUATORS.create("perplexity").bind(session.loaded.model, session.text["test"])
        return proxy.score(session.loaded.model, range(len(session.text["test"]))).value


def run_case(case: Case, arguments: argparse.Namespace) -> dict[str, float]:
    run = arguments.out / case.name
    file = arguments.out / f"{case.name}.json"
    figures: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}
    config = configuration(case, arguments)
    if not (run / "results.json").exists():
        search(config, run, command=["benchmarks/main_job.py", case.name])
    test = Request("test", f"file:{arguments.test}", 40, 1024)
    session = open_session(
        config.model, [request_calibration(config.data), test], case.seed, Monitor()
    )
    layout = session.subject.layout
    wanted: dict[str, SparsityProfile | None] = {}
    if case.seed == 0:  # other seeds only break ties otherwise
        wanted["dense"] = None
        for name in ("uniform", "owl"):
            wanted[name] = read_profile(layout, run / "profiles" / f"{name}.json")
    for minutes in arguments.minutes:
        wanted[f"searched {minutes:g} min"] = best_at(run, minutes, config)
    for name, profile in wanted.items():
        if name not in figures:
            figures[name] = perplexity(session, case, profile)
            write_json(file, figures)
            print(f"{case.name}: {name} {figures[name]:.2f}", flush=True)
    return figures


def read_profile(layout, file: Path) -> SparsityProfile:  # type: ignore[no-untyped-def]
    return SparsityProfile.from_json(layout, json.loads(file.read_text()))


def cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, nargs="+", default=[10, 30])
    parser.add_argument("--case", nargs="*", help="names of cases; all by default")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--set", action="append", default=[], help="section.key=value")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    table = {
        case.name: run_case(case, arguments)
        for case in CASES
        if not arguments.case or case.name in arguments.case
    }
    columns = list(dict.fromkeys(c for figures in table.values() for c in figures))
    print("| case | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name, figures in table.items():
        print(f"| {name} | " + " | ".join(cell(figures.get(c)) for c in columns) + " |")


if __name__ == "__main__":
    main()
