"""What one evaluation costs, beside the naive loop, on SmolLM2-135M: docs/speed.md.

A rung of candidates, 4 x 512 tokens each, is scored in several ways in one process, one way after
the other in each repeat, on one thread; figures are ratios of CPU seconds to the naive loop of the
same repeat. Passes of the whole model cost the same whatever the candidate: after the first
repeat, which compares all scores, they are timed on a quarter of the rung.

    python benchmarks/evaluation.py --text wikipedia_heldout.jsonl --out evaluation.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsity_search.config.load import load_config
from sparsity_search.data.sequences import Request
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.session import Session, open_session
from sparsity_search.evaluators.kl_divergence import KLDivergenceEvaluator
from sparsity_search.models.running.prefix_cache import PrefixCache
from sparsity_search.profiles.budget import Budget
from sparsity_search.registry import PRUNERS
from sparsity_search.searchers.evolution import EvolutionSearcher
from sparsity_search.spaces.files import load_space
from sparsity_search.spaces.levels import Candidate, SearchSpace
from sparsity_search.supernet.build import SupernetDesign, build_supernet
from sparsity_search.supernet.objective import SupernetObjective
from sparsity_search.supernet.switch import Switch
from sparsity_search.trials.history import Fidelity, History
from sparsity_search.utils.files import write_json
from sparsity_search.utils.random import create_generator

TOKENS, LENGTH, POSITIONS = 2048, 512, 128
#: Published settings of EvoPress's mutation.
EVOPRESS = {"max_switches": 3, "strides": (1,)}


@dataclass
class Bench:
    """A resident supernet, and what is scored on it."""

    session: Session
    space: SearchSpace
    switch: Switch

    @property
    def text(self) -> Tensor:
        return self.session.text["search"]

    def children(self, n: int) -> list[Candidate]:
        """Return children of the uniform candidate, ordered as a study orders them."""
        history, rng = History(), create_generator(0, "children", 0)
        history.close_round([self.space.origin])
        searcher = EvolutionSearcher(**EVOPRESS)  # type: ignore[arg-type]
        return sorted(searcher.ask(self.space, history, n, rng))

    def naive(self, candidates: Sequence[Candidate]) -> list[float]:
        """Score each with a forward pass of the whole model and full softmaxes of all logits."""
        model, found = self.session.loaded.model, []
        for candidate in candidates:
            self.switch.to(self.space.profile(candidate))
            with torch.inference_mode():
                logits = model(input_ids=self.text, use_cache=False).logits
                student = logits.float().log_softmax(-1)
                expected = self.teacher.float().log_softmax(-1)
                divergence = torch.nn.functional.kl_div(
                    student, expected, reduction="sum", log_target=True
                )
            found.append(float(divergence) / self.text.numel())
        return found

    def ours(
        self, mib: int, positions: int | None
    ) -> Callable[[Sequence[Candidate]], list[float]]:
        """Return our way to score, with some memory for prefixes, on some positions."""
        model = self.session.loaded.model
        self.switch.dense()
        proxy = KLDivergenceEvaluator(positions=positions, cache_mib=4096).bind(model, self.text)
        rows = list(range(len(self.text)))
        proxy.score(model, rows)  # the dense model's probabilities are made once in a search

        def score(candidates: Sequence[Candidate]) -> list[float]:
            prefixes = PrefixCache(self.session.subject, mib * 2**20)
            pool = (len(self.text), LENGTH)
            objective = SupernetObjective(prefixes, self.switch, proxy, pool, 0)
            profiles = map(self.space.profile, candidates)
            return [objective(profile, Fidelity(TOKENS)).value for profile in profiles]

        return score

    def measure_teacher(self) -> None:
        with torch.inference_mode():
            model = self.session.loaded.model
            self.teacher = model(input_ids=self.text, use_cache=False).logits


@contextmanager
def bench(arguments: argparse.Namespace) -> Iterator[Bench]:
    config = load_config(None, {"model.name": "smollm2", "budget.sparsity": 0.7})
    source = f"file:{arguments.text}"
    requests = [
        Request("calibration", source, 4, LENGTH),
        Request("search", source, TOKENS // LENGTH, LENGTH),
    ]
    session = open_session(config.model, requests, 0, Monitor())
    space = load_space("per_linear").of_levels.build(session.subject.layout, Budget(0.7), {})
    pruner = PRUNERS.create(arguments.pruner)
    plan = SupernetDesign(pruner=pruner, tables=space.tables(), centre=space.base)
    supernet = build_supernet(session.subject, session.text["calibration"], plan)
    with supernet.resident() as switch:
        made = Bench(session, space, switch)
        made.measure_teacher()
        yield made


def timed(score: Callable[[Sequence[Candidate]], list[float]], of: Sequence[Candidate]) -> Any:
    started = time.process_time()
    found = score(of)
    return (time.process_time() - started) / len(of), found


def blocks_run(space: SearchSpace, candidates: Sequence[Candidate]) -> float:
    """Return the share of blocks that a prefix cache has to run."""
    states = [space.profile(candidate).states for candidate in candidates]
    of = [unit.block for unit in space.layout]
    n_blocks = of[-1] + 1
    first = [
        next(of[i] for i, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1])
        for one, other in pairwise(states)
    ]
    return (n_blocks + sum(n_blocks - f for f in first)) / (n_blocks * len(candidates))


def head_share(session: Session) -> float:
    """Return the head's share of a forward pass's multiplications."""
    config = session.loaded.model.config
    width: int = config.hidden_size
    n_blocks: int = config.num_hidden_layers
    # scores and values of the attention: two products of a token's queries with the keys
    attention = 2 * n_blocks * width * LENGTH
    head: int = width * config.vocab_size
    return head / (head + session.subject.layout.n_weights + attention)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pruner", default="wanda")
    parser.add_argument("--candidates", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    done: list[dict[str, Any]] = (
        json.loads(arguments.out.read_text()) if arguments.out.exists() else []
    )
    if len(done) < arguments.repeats:
        with bench(arguments) as made:
            ways = made_ways(made, arguments.candidates)
            while len(done) < arguments.repeats:
                done.append(repeat(made, ways, every=4 if done else 1))
                write_json(arguments.out, done)
    print(f"naive: {statistics.median(each['naive'] for each in done):.2f} CPU s a candidate")
    for name in done[0]["ways"]:
        ratios = [each["ways"][name]["ratio"] for each in done]
        facts = {key: value for key, value in done[0]["ways"][name].items() if key != "ratio"}
        print(
            f"| {name} | {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            f" | {facts}"
        )


@dataclass(frozen=True)
class Way:
    """A way to score, and the rung that is scored."""

    score: Callable[[Sequence[Candidate]], list[float]]
    candidates: list[Candidate]
    prefixes: bool = True
    positions: int = LENGTH


def made_ways(made: Bench, n: int) -> dict[str, Way]:
    """Return the ways by name."""
    children = made.children(n)
    all_, few = made.ours(1024, None), made.ours(1024, POSITIONS)
    return {
        "whole, in parts": Way(made.ours(0, None), children, prefixes=False),
        "prefixes": Way(all_, children),
        "prefixes, 128 positions": Way(few, children, positions=POSITIONS),
    }


def repeat(made: Bench, ways: Mapping[str, Way], every: int) -> dict[str, Any]:
    """Run every way once, and return the ratios to the naive loop beside the arithmetic.

    Args:
        made: What is scored.
        ways: How.
        every: Whole passes are made for one candidate of so many.
    """
    head = head_share(made.session)
    known = ways["prefixes"].candidates[::every]
    naive, expected = timed(made.naive, known)
    rows: dict[str, dict[str, Any]] = {}
    scores: dict[str, dict[Candidate, float]] = {}
    for name, way in ways.items():
        candidates = way.candidates if way.prefixes else known
        seconds, values = timed(way.score, candidates)
        scores[name] = dict(zip(candidates, values, strict=True))
        blocks = blocks_run(made.space, candidates) if way.prefixes else 1.0
        rows[name] = {
            "ratio": seconds / naive,
            "blocks run": blocks,
            "bound": blocks * (1 - head) + way.positions / LENGTH * head,
        }
    whole, shared = scores["whole, in parts"], scores["prefixes"]
    rows["prefixes"]["equal to the whole model's"] = all(shared[c] == whole[c] for c in known)
    pairs = zip(known, expected, strict=True)
    rows["whole, in parts"]["from naive"] = max(abs(whole[c] / e - 1) for c, e in pairs)
    return {"naive": naive, "ways": rows}


if __name__ == "__main__":
    main()
