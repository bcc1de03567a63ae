"""How cost grows with what a search is about: the exponents of docs/speed.md.

Tiny random models and toy problems. Each case is measured at several sizes, in turns, in CPU
seconds; the exponent is the slope of a straight line through the medians, both in logarithms.

    python benchmarks/scaling.py --out benchmarks/results/scaling.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from sparsity_search.cli.terminal import silence_libraries
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.prefix_cache import PrefixCache
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.profiles.scores import Scores, build_count_tables
from sparsity_search.registry import ALLOCATORS, EVALUATORS, PRUNERS, SEARCHERS
from sparsity_search.spaces.even_levels import EvenLevels
from sparsity_search.spaces.levels import SearchSpace
from sparsity_search.study.study import Limits, Study
from sparsity_search.supernet.build import SupernetDesign, build_supernet
from sparsity_search.supernet.objective import SupernetObjective
from sparsity_search.testing.evaluator import draw_random_tokens
from sparsity_search.testing.models import tiny_llama
from sparsity_search.testing.problems import toy_layout, toy_space
from sparsity_search.trials.history import Fidelity, History, Measurement, Score
from sparsity_search.trials.ladder import Ladder, Rung
from sparsity_search.trials.storages import open_journal
from sparsity_search.trials.store import Store
from sparsity_search.utils.files import write_json
from sparsity_search.utils.random import create_generator

Work = Callable[[], Any]
LENGTH = 64
LADDER = Ladder(candidates=12, rungs=(Rung(512, 3), Rung(2048, 1)))


def llama(*, blocks: int = 4, width: int = 128) -> PrunableModel:
    model = tiny_llama(layers=blocks, hidden_size=width, intermediate_size=2 * width)
    return PrunableModel(model)


def supernet(
    size: int, *, by: str, pruner: str = "wanda", levels: int = 8, tokens: int = 4096
) -> Work:
    """Return the building of a supernet, of `size` blocks, levels, tokens or of that width."""
    shape = {by: size} if by in ("blocks", "width") else {}
    subject, made = llama(**shape), PRUNERS.create(pruner)
    levels = size if by == "levels" else levels
    tokens = size if by == "tokens" else tokens
    counts = build_count_tables(subject.layout, np.linspace(0.3, 0.9, levels).tolist())
    centre = SparsityProfile(subject.layout, tuple(c[len(c) // 2] for c in counts))
    plan = SupernetDesign(pruner=made, tables=counts, centre=centre)
    return partial(build_supernet, subject, draw_random_tokens(tokens // LENGTH, LENGTH), plan)


def rung(size: int, *, by: str, candidates: int = 12, tokens: int = 1024) -> Work:
    """Return the scoring of children of one parent, in the order of their prefixes."""
    subject = llama(blocks=size if by == "blocks" else 8)
    candidates = size if by == "candidates" else candidates
    tokens = size if by == "tokens" else tokens
    space = EvenLevels(
        layout=subject.layout,
        budget=Budget(0.5),
        bounds=Bounds.of(subject.layout),
        genes=tuple((i,) for i in range(len(subject.layout))),
        step=1024,
        reach=4,
    )
    text = draw_random_tokens(tokens // LENGTH, LENGTH)
    plan = SupernetDesign(pruner=PRUNERS.create("wanda"), tables=space.tables(), centre=space.base)
    built = build_supernet(subject, text, plan)
    history = History()
    history.close_round([space.origin])
    rng = create_generator(0, "children")
    children = sorted(SEARCHERS.create("evolution").ask(space, history, candidates, rng))
    proxy = EVALUATORS.create("kl_divergence").bind(subject.model, text)

    def work() -> None:
        with built.resident() as switch:
            objective = SupernetObjective(
                PrefixCache(subject, 2**30), switch, proxy, (len(text), LENGTH), 0
            )
            for child in children:
                objective(space.profile(child), Fidelity(tokens))

    return work


@dataclass
class Additive:
    """A score that costs next to nothing: what is left is the engine's own work."""

    weights: np.ndarray

    def __call__(
        self, profile: SparsityProfile, fidelity: Fidelity, known: Score | None = None
    ) -> Score:
        del known
        value = float(self.weights @ np.exp(3 * np.array(profile.removed) / 1000))
        return Score(value, (value,) * (fidelity.tokens // 512))


def toy(units: int) -> tuple[SearchSpace, Additive]:
    space = toy_space(*(1000,) * units, step=25, reach=8)
    return space, Additive(create_generator(0, "weights").uniform(0.1, 1, units))


def study(size: int) -> Work:
    """Return a whole search of ``size`` measurements, with its journal."""
    space, objective = toy(210)

    def work() -> None:
        with TemporaryDirectory() as folder:
            made = Study(
                space=space,
                searcher=SEARCHERS.create("evolution"),
                objective=objective,
                ladder=LADDER,
                store=Store(open_journal(Path(folder) / "journal"), "study", {}),
            )
            made.run(Limits(rounds=size // 16))

    return work


def resumed(size: int) -> Work:
    """Return the reading of a journal of ``size`` measurements, and the rounds replayed."""
    space, objective = toy(210)
    folder = TemporaryDirectory()
    made = Study(
        space=space,
        searcher=SEARCHERS.create("random"),
        objective=objective,
        ladder=LADDER,
        store=Store(open_journal(Path(folder.name) / "journal"), "study", {}),
    )
    made.run(Limits(rounds=size // 16))

    def work() -> None:
        Store(open_journal(Path(folder.name) / "journal"), "study", {}).load()

    return work


def asked(size: int, *, searcher: str, by: str) -> Work:
    """Return one round's proposals, after ``size`` measurements or for ``size`` units."""
    space, objective = toy(size if by == "units" else 210)
    history, plain = History(), SEARCHERS.create("evolution")
    history.close_round([space.origin])
    rng = create_generator(0, "asked")
    fidelity = Fidelity(512)
    while len(history.measurements) < (size if by == "history" else 300):
        for child in plain.ask(space, history, 12, rng):
            score = objective(space.profile(child), fidelity)
            round_ = len(history.winners)
            history.add(
                Measurement(round=round_, rung=0, candidate=child, fidelity=fidelity, score=score)
            )
        best = min(history.measurements[-12:], key=lambda m: m.score.value)
        history.close_round([best.candidate])
    found = SEARCHERS.create(searcher)
    return lambda: found.ask(space, history, 12, create_generator(0, "ask"))


def projected(size: int) -> Work:
    layout = toy_layout(*(1000,) * size)
    wanted = create_generator(0, "wanted").uniform(0.2, 1.0, size)
    return lambda: [Budget(0.6).project(layout, wanted) for _ in range(20)]


def knapsack(size: int) -> Work:
    layout = toy_layout(*(1000,) * size)
    counts = build_count_tables(layout, np.linspace(0.1, 1, 10).tolist())
    rng = create_generator(0, "losses")
    losses = tuple(np.sort(rng.exponential(size=len(c))) ** 2 for c in counts)
    scores = Scores(layout, tuple(map(np.array, counts)), losses)
    plugin = ALLOCATORS.create("knapsack")
    return lambda: plugin.solve(scores, Budget(0.6), Bounds.of(layout))


CASES: dict[str, tuple[tuple[int, ...], Callable[[int], Work]]] = {
    "supernet, blocks": ((4, 8, 16, 32), partial(supernet, by="blocks")),
    "supernet, width": ((128, 256, 512, 1024), partial(supernet, by="width")),
    "supernet, levels": ((4, 8, 16, 32), partial(supernet, by="levels")),
    "supernet, tokens": ((2048, 4096, 8192, 16384), partial(supernet, by="tokens")),
    "SparseGPT supernet, width": (
        (128, 256, 512, 1024),
        partial(supernet, by="width", pruner="sparsegpt"),
    ),
    "SparseGPT supernet, levels": (
        (4, 8, 16, 32),
        partial(supernet, by="levels", pruner="sparsegpt"),
    ),
    "rung, blocks": ((4, 8, 16, 32), partial(rung, by="blocks")),
    "rung, candidates": ((8, 16, 32, 64), partial(rung, by="candidates")),
    "rung, tokens": ((512, 1024, 2048, 4096), partial(rung, by="tokens")),
    "search, measurements": ((1250, 2500, 5000, 10000, 20000), study),
    "journal, measurements": ((1250, 2500, 5000, 10000, 20000), resumed),
    "evolution's round, history": (
        (1250, 2500, 5000, 10000, 20000),
        partial(asked, searcher="evolution", by="history"),
    ),
    "predictor's round, history": (
        (1250, 2500, 5000, 10000, 20000),
        partial(asked, searcher="predictor", by="history"),
    ),
    "evolution's round, units": (
        (30, 100, 300, 1000, 3000),
        partial(asked, searcher="evolution", by="units"),
    ),
    "predictor's round, units": (
        (30, 100, 300, 1000, 3000),
        partial(asked, searcher="predictor", by="units"),
    ),
    "projection, units": ((30, 100, 300, 1000, 3000), projected),
    "knapsack, units": ((30, 100, 300, 1000, 3000), knapsack),
}


def measured(name: str, repeats: int) -> dict[str, Any]:
    """Return medians and spread of a case's CPU seconds, and their exponent."""
    sizes, prepare = CASES[name]
    works = [prepare(size) for size in sizes]
    times: list[list[float]] = [[] for _ in sizes]
    for _ in range(repeats):
        for work, known in zip(works, times, strict=True):
            started = time.process_time()
            work()
            known.append(time.process_time() - started)
    medians = [statistics.median(known) for known in times]
    logs = np.log(sizes), np.log(medians)
    return {
        "sizes": sizes,
        "seconds": medians,
        "from": [min(known) for known in times],
        "to": [max(known) for known in times],
        "exponent": float(np.polyfit(*logs, 1)[0]),
        "last": float((logs[1][-1] - logs[1][-2]) / (logs[0][-1] - logs[0][-2])),
    }


def row(name: str, found: dict[str, Any]) -> str:
    sizes: Sequence[int] = found["sizes"]
    seconds = ", ".join(f"{second:.3g}" for second in found["seconds"])
    return f"| {name} | {', '.join(map(str, sizes))} | {seconds} | {found['exponent']:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--case", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    silence_libraries()
    known = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for name in arguments.case:
        if name not in known:
            known[name] = measured(name, arguments.repeats)
            write_json(arguments.out, known)
        print(row(name, known[name]), flush=True)


if __name__ == "__main__":
    main()
