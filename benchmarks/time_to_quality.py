"""Ours against a faithful EvoPress in time and quality, on SmolLM2-135M: docs/speed.md.

The baseline (arXiv 2410.14649, algorithm 1) builds SparseGPT's levels from dense inputs, starts
at the uniform profile, and measures ten offspring a generation on 512 fresh tokens, then the best
two and the parent on 2,048, each with a whole forward pass and full softmaxes. Ours are
allocators. Clocks run from the loaded model to the chosen profile, in CPU seconds of one thread;
every profile is then pruned sequentially. What is done is kept in ``OUT``, the baseline's parent
after each generation too: it goes on there, and its database, built anew for that, counts once.
Results on other text, or with another step of the baseline, are refused.

The three texts may be one file, which they take consecutive pieces of:

    python benchmarks/time_to_quality.py --calibration wikitext2_valid.txt \
        --search wikitext2_valid.txt --test wikitext2_valid.txt \
        --out runs/time_to_quality --table benchmarks/results/time_to_quality.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from supernet import naive  # these files are beside this one
from tables import counts_in, slug, write_table
from torch import Tensor

from sparsity_search.config.load import load_config
from sparsity_search.data.sequences import Request, compute_digest
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.session import Session, open_session
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.registry import ALLOCATORS, EVALUATORS, PRUNERS, Factory
from sparsity_search.searchers.evolution import EvolutionSearcher
from sparsity_search.spaces.files import load_space
from sparsity_search.spaces.levels import Candidate
from sparsity_search.trials.history import History
from sparsity_search.utils.files import write_json
from sparsity_search.utils.random import create_generator

TARGET, LENGTH = 0.7, 512
GENERATIONS, OFFSPRING, SURVIVORS = 45, 10, 2
#: Weights that a level moves: a million where matrices are 4,096 wide, as published, to scale.
STEP = 1_000_000 / 4096**2 * 576**2
#: Sequences of the two rungs of a generation.
FEW, MANY = 1, 4


class Baseline:
    """EvoPress on dense copies of every level, without anything that saves work."""

    def __init__(self, session: Session, file: Path) -> None:
        started = time.process_time()
        self._file = file
        self._subject, self._model = session.subject, session.loaded.model
        self._pool = session.text["search"]
        layout = self._subject.layout
        step = STEP / min(unit.size for unit in layout)
        levels = load_space("per_linear").of_levels.model_copy(update={"step": step})
        self._space = levels.build(layout, Budget(TARGET), {})
        self._copies = naive(
            self._subject,
            session.text["calibration"],
            list(self._space.tables()),
            PRUNERS.create("sparsegpt"),
        )
        self._teacher = self._logits_of_the_pool()
        self._state: dict[str, Any] = {
            "generation": 0,
            "parent": list(self._space.origin),
            "seconds": time.process_time() - started,
        }
        if file.exists():
            self._state = json.loads(file.read_text())

    def search(self) -> tuple[SparsityProfile, float]:
        """Return the profile after all generations, and the CPU seconds of database and search."""
        while self._state["generation"] < GENERATIONS:
            started, parent = time.process_time(), self._generation()
            self._state = {
                "generation": self._state["generation"] + 1,
                "parent": list(parent),
                "seconds": self._state["seconds"] + time.process_time() - started,
            }
            write_json(self._file, self._state)
        return self._space.profile(tuple(self._state["parent"])), self._state["seconds"]

    @torch.inference_mode()
    def _generation(self) -> Candidate:
        space, rng = self._space, create_generator(0, "baseline", self._state["generation"])
        parent: Candidate = tuple(self._state["parent"])
        history = History()
        history.close_round([parent])
        found = list(
            EvolutionSearcher(max_switches=3, strides=(1,)).ask(space, history, OFFSPRING, rng)
        )
        for rows, survivors in ((FEW, SURVIVORS), (MANY, 1)):
            found = found if rows == FEW else [*found, parent]
            drawn = rng.choice(len(self._pool), rows, replace=False)
            scores = {c: self._score(c, drawn.tolist()) for c in found}
            found = sorted(found, key=scores.__getitem__)[:survivors]
        return found[0]

    def _score(self, candidate: Candidate, rows: list[int]) -> float:
        profile = self._space.profile(candidate)
        for unit, count in zip(profile.layout, profile.removed, strict=True):
            self._subject.views[unit.name].write(self._copies[unit.name][count])
        student = self._logits(self._pool[rows]).float().log_softmax(-1)
        expected = torch.cat([self._teacher[row] for row in rows]).float().log_softmax(-1)
        divergence = torch.nn.functional.kl_div(
            student, expected, reduction="sum", log_target=True
        )
        return float(divergence)

    @torch.inference_mode()
    def _logits_of_the_pool(self) -> list[Tensor]:
        return [self._logits(row[None]) for row in self._pool]

    def _logits(self, tokens: Tensor) -> Tensor:
        made: Tensor = self._model(input_ids=tokens, use_cache=False).logits
        return made


#: Returns the profile that a way chooses, and the CPU seconds that it took in all.
Way = Callable[[Session, Path], tuple[SparsityProfile, float]]


def evopress(session: Session, out: Path) -> tuple[SparsityProfile, float]:
    with session.subject.preserved():
        return Baseline(session, out / "baseline.json").search()


def allocated(method: str | dict[str, Any], pruner: str = "sparsegpt") -> Way:
    """An allocator; it prunes for its own use with ``pruner``, and so does its start."""

    def allocate(session: Session, _: Path) -> tuple[SparsityProfile, float]:
        started = time.process_time()
        shared = {"allocator": {"pruner": PRUNERS.create(pruner)}}
        plugin = Factory(shared=shared).resolve(ALLOCATORS, method)
        bounds = Bounds.of(session.subject.layout)
        text = session.text["calibration"]
        found: SparsityProfile = plugin.allocate(session.subject, text, Budget(TARGET), bounds)
        return found, time.process_time() - started

    return allocate


def descent(start: str, pruner: str = "sparsegpt", **settings: int) -> Way:
    """Steps by gradients on a pruner's weights, as they are around the start."""
    return allocated({"name": "gauss_newton", "start": start, **settings}, pruner)


FROM_CFSP, FROM_KNAPSACK = "gauss_newton[start=cfsp]", "gauss_newton[start=knapsack]"

WAYS: dict[str, Way] = {
    "uniform": allocated("uniform"),
    "evopress": evopress,
    "cfsp": allocated("cfsp"),
    f"{FROM_CFSP}, Wanda's masks": descent("cfsp", "wanda"),
    FROM_CFSP: descent("cfsp"),
    f"{FROM_CFSP}, twice": descent("cfsp", stages=2),
    "knapsack, Wanda's masks": allocated("knapsack", "wanda"),
    "knapsack": allocated("knapsack"),
    FROM_KNAPSACK: descent("knapsack"),
    f"{FROM_KNAPSACK}, twice": descent("knapsack", stages=2),
    f"{FROM_KNAPSACK}, three times": descent("knapsack", stages=3),
}


def measured(name: str, out: Path, session: Session) -> dict[str, Any]:
    """Return the seconds of a way and the perplexity of its profile, measured if need be."""
    file = out / f"{slug(name)}.json"
    if not file.exists():
        profile, seconds = WAYS[name](session, out)
        write_json(out / "profiles" / f"{slug(name)}.json", profile.to_json())
        with session.subject.preserved():
            pruner, text = PRUNERS.create("sparsegpt"), session.text["calibration"]
            prune_sequentially(session.subject, profile, pruner, text)
            model, test = session.loaded.model, session.text["test"]
            score = (
                EVALUATORS.create("perplexity").bind(model, test).score(model, range(len(test)))
            )
        write_json(file, {"seconds": seconds, "perplexity": score.value})
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def check_setting(out: Path, session: Session) -> None:
    """Refuse a folder whose results were measured otherwise; note the setting in a new one."""
    file, text = out / "setting.json", session.text
    setting = {"step": STEP, "dtype": str(session.loaded.model.dtype)}
    setting |= {
        purpose: compute_digest(text[purpose]) for purpose in ("calibration", "search", "test")
    }
    if not file.exists():
        write_json(file, setting)
    if json.loads(file.read_text()) != setting:
        raise SystemExit(f"{out} has results of another setting: give another --out")


def table_of(out: Path) -> dict[str, Any]:
    """Return the setting, the rows and the profiles of all ways that are done."""
    done = {name: out / f"{slug(name)}.json" for name in WAYS}
    return {
        "setting": json.loads((out / "setting.json").read_text()),
        "rows": [
            {"way": name, **json.loads(file.read_text())}
            for name, file in done.items()
            if file.exists()
        ],
        "profiles": counts_in(out / "profiles"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("calibration", "search", "test", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--table", type=Path, help="write the table of all cases in --out here")
    parser.add_argument("--way", nargs="*", choices=WAYS, default=list(WAYS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    requests = [
        Request("calibration", f"file:{arguments.calibration}", 32, 1024),
        Request("search", f"file:{arguments.search}", 64, LENGTH),
        Request("test", f"file:{arguments.test}", 40, 1024),
    ]
    session = open_session(
        load_config(None, {"model.name": "smollm2"}).model, requests, 0, Monitor()
    )
    check_setting(arguments.out, session)
    baseline = measured("evopress", arguments.out, session)
    for name in arguments.way:
        found = measured(name, arguments.out, session)
        ratios = [found[what] / baseline[what] for what in ("seconds", "perplexity")]
        print(
            f"| {name} | {found['seconds']:.0f} | {ratios[0]:.2f} | "
            f"{found['perplexity']:.1f} | {ratios[1]:.2f} |",
            flush=True,
        )
    if arguments.table:
        write_table(arguments.table, table_of(arguments.out))


if __name__ == "__main__":
    main()
