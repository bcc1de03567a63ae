"""What leaving removed structures out of the products saves, on SmolLM2-135M: docs/speed.md.

Candidates of channels and key-value groups are scored twice, with smaller matrices and with zeros
in full-size ones, one way after the other in each repeat, in one process on one thread; figures
are CPU seconds a candidate. No prefixes are kept: every block is run.

    python benchmarks/narrow.py --text wikipedia_heldout.jsonl --out narrow.json
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from sparsity_search.config.load import load_config
from sparsity_search.data.sequences import Request
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.session import Session, open_session
from sparsity_search.evaluators.kl_divergence import KLDivergenceEvaluator
from sparsity_search.interfaces.evaluator import Proxy
from sparsity_search.models.running.head import compute_last_hidden
from sparsity_search.profiles.budget import Budget
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.registry import PRUNERS
from sparsity_search.searchers.evolution import EvolutionSearcher
from sparsity_search.spaces.files import load_space
from sparsity_search.spaces.levels import SearchSpace
from sparsity_search.supernet.build import SupernetDesign, build_supernet
from sparsity_search.supernet.switch import Switch
from sparsity_search.trials.history import History
from sparsity_search.utils.files import write_json
from sparsity_search.utils.random import create_generator

SPARSITIES, LENGTH = (0.25, 0.5), 512
#: Published settings of EvoPress's mutation.
EVOPRESS = {"max_switches": 3, "strides": (1,)}


@dataclass
class Costs:
    """CPU seconds of one candidate, and what it scored."""

    switch: float
    blocks: float
    evaluation: float
    score: float


@dataclass
class Bench:
    """A resident supernet, and what is scored on it."""

    session: Session
    profiles: Sequence[SparsityProfile]
    switch: Switch
    proxy: Proxy

    def costs(self, narrow: Callable[[], AbstractContextManager[None]]) -> list[Costs]:
        """Return what each profile costs; the first one is switched to before."""
        model, text = self.session.loaded.model, self.session.text["search"]
        rows, found = range(len(text)), []
        self.switch.to(self.profiles[0])
        with narrow():
            pass
        for profile in self.profiles[1:]:
            times = [time.process_time()]
            self.switch.to(profile)
            with narrow(), torch.inference_mode():
                times.append(time.process_time())
                score = self.proxy.score(model, rows).value
                times.append(time.process_time())
                for row in rows:
                    compute_last_hidden(model, text[row : row + 1])
                times.append(time.process_time())
            switched, scored, run = (after - before for before, after in pairwise(times))
            found.append(Costs(switched, run, scored, score))
        return found


def children(space: SearchSpace, n: int) -> list[SparsityProfile]:
    """Return the uniform profile and children of it, ordered as a study orders them."""
    history = History()
    history.close_round([space.origin])
    searcher = EvolutionSearcher(**EVOPRESS)  # type: ignore[arg-type]
    found = sorted(searcher.ask(space, history, n, create_generator(0, "children")))
    return [space.profile(candidate) for candidate in (space.origin, *found)]


@contextmanager
def bench(session: Session, sparsity: float, arguments: argparse.Namespace) -> Iterator[Bench]:
    space = load_space("per_linear").of_levels.build(session.subject.layout, Budget(sparsity), {})
    plan = SupernetDesign(
        pruner=PRUNERS.create(arguments.pruner), tables=space.tables(), centre=space.base
    )
    supernet = build_supernet(session.subject, session.text["calibration"], plan)
    text = session.text["search"]
    proxy = KLDivergenceEvaluator(cache_mib=4096).bind(session.loaded.model, text)
    proxy.score(session.loaded.model, range(len(text)))  # what is kept of the dense model is made
    profiles = children(space, arguments.candidates)
    with supernet.resident() as switch:
        switch.to(profiles[0])
        started = time.process_time()
        with switch.narrow():  # once in a search: units are tried out, and all are made anew
            print(f"first time: {time.process_time() - started:.3g} s", flush=True)
        yield Bench(session, profiles, switch, proxy)


def measure(made: Bench, repeats: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each way: medians and ranges of the repeats' means."""
    ways = {"zeros": nullcontext, "narrow": made.switch.narrow}
    found: dict[str, list[list[Costs]]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, narrow in ways.items():
            found[way].append(made.costs(narrow))
    removed = statistics.mean(profile.sparsity for profile in made.profiles[1:])
    for way, all_costs in found.items():
        row: dict[str, Any] = {"way": way, "removed": removed}
        for what in ("switch", "blocks", "evaluation"):
            each = [statistics.mean(getattr(cost, what) for cost in of) for of in all_costs]
            row[what] = spread(each)
            zeros = [statistics.mean(getattr(c, what) for c in of) for of in found["zeros"]]
            row[f"{what}, ratio"] = spread([a / b for a, b in zip(each, zeros, strict=True)])
        pairs = zip(all_costs[0], found["zeros"][0], strict=True)
        row["scores differ by"] = max(abs(ours.score / zero.score - 1) for ours, zero in pairs)
        yield row


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def told(sparsity: float, row: dict[str, Any]) -> str:
    """Return a row of the table."""
    cells = [f"{sparsity:.0%}", row["way"]]
    for what, unit in (("blocks", 1), ("evaluation", 1), ("switch", 1000)):
        (middle, low, high), (ratio, *_) = row[what], row[f"{what}, ratio"]
        cells.append(f"{middle * unit:.3g} ({low * unit:.3g} to {high * unit:.3g}), {ratio:.2f}")
    return " | ".join([*cells, f"{row['scores differ by']:.1e}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pruner", default="wanda_sp")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--sequences", type=int, default=1)
    parser.add_argument("--candidates", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    source = f"file:{arguments.text}"
    requests = [
        Request("calibration", source, 4, LENGTH),
        Request("search", source, arguments.sequences, LENGTH),
    ]
    config = load_config(
        None, {"model.name": "smollm2", "model.dtype": arguments.dtype, "budget.sparsity": 0.5}
    )
    session = open_session(config.model, requests, 0, Monitor(), units="width")
    rows = []
    print("removed | way | blocks, s | evaluation, s | switch, ms | scores differ by")
    for sparsity in SPARSITIES:
        with bench(session, sparsity, arguments) as made:
            for row in measure(made, arguments.repeats):
                rows.append({"sparsity": sparsity, **row})
                print(told(sparsity, row), flush=True)
    if arguments.out:
        write_json(arguments.out, rows)


if __name__ == "__main__":
    main()
