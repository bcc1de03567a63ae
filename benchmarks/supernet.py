"""Building a supernet beside the naive database, on SmolLM2-135M: docs/speed.md.

The naive one does what EvoPress's release does: a Hessian for every layer though some read one
tensor, a second pass of each block for its outputs, SparseGPT's algorithm as it was published for
one level after the other, and a dense copy of each. Both get the same text, levels and first
blocks, in turns in one process.

    python benchmarks/supernet.py --text wikipedia_calibration.jsonl --out runs/supernet.json
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tables import merge_rows  # the file beside this one
from torch import Tensor

from sparsity_search.config.load import load_config
from sparsity_search.data.sequences import Request
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.session import open_session
from sparsity_search.evidence.statistics import InputStatistics, Statistic
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.runner import BlockRunner
from sparsity_search.profiles.budget import Budget
from sparsity_search.registry import PRUNERS
from sparsity_search.searchers.evolution import EvolutionSearcher
from sparsity_search.spaces.files import load_space
from sparsity_search.spaces.levels import SearchSpace
from sparsity_search.supernet.build import SupernetDesign, build_supernet
from sparsity_search.supernet.switch import Supernet
from sparsity_search.trials.history import History
from sparsity_search.utils.random import create_generator

TARGET, LENGTH = 0.7, 1024
#: Switches of levels in an offspring, and offspring that are switched to.
SWITCHES, OFFSPRING = 3, 32

Copies = dict[str, dict[int, Tensor]]


def naive(
    subject: PrunableModel, tokens: Tensor, tables: list[tuple[int, ...]], pruner: Pruner
) -> Copies:
    """Return a dense copy of each unit at each level, all from dense inputs."""
    runner, copies = BlockRunner(subject, tokens), Copies()
    hidden = runner.embed()
    for block in range(len(subject.blocks)):
        units = subject.units_of(block)
        known, handles = {}, []
        for unit in units:
            view = subject.views[unit.name]
            found = InputStatistics(view.read().shape[1], pruner.requires)
            hook = lambda _, args, found=found: found.add(args[0])  # noqa: E731
            handles.append(view.module.register_forward_pre_hook(hook))
            known[unit.name] = found
        runner.run(block, hidden)
        for handle in handles:
            handle.remove()
        for unit in units:
            weight = subject.views[unit.name].read()
            counts = tables[subject.layout.position(unit.name)]
            if pruner.requires is Statistic.HESSIAN:
                factor = known[unit.name].inverse_factor(0.01).upper
                made = {count: published_sweep(weight, factor, count) for count in counts}
            else:
                norms = known[unit.name].norms()
                made = {count: published_mask(weight, norms, count) for count in counts}
            copies[unit.name] = made
        hidden = runner.run(block, hidden)
    return copies


def published_sweep(weight: Tensor, upper: Tensor, count: int, width: int = 128) -> Tensor:
    """Return a weight after SparseGPT (arXiv 2301.00774, algorithm 1), column by column."""
    work = weight.to(torch.float32, copy=True)
    for start in range(0, work.shape[1], width):
        block = slice(start, min(start + width, work.shape[1]))
        part, factor = work[:, block].clone(), upper[block, block].clone()
        scores = part.square() / factor.diagonal().square()
        ordered = scores.flatten().sort().values
        last = min(int(len(ordered) * count / weight.numel()), len(ordered) - 1)
        removed = scores <= ordered[last]
        errors = torch.zeros_like(part)
        for column in range(part.shape[1]):
            pruned = part[:, column].clone()
            pruned[removed[:, column]] = 0
            errors[:, column] = (part[:, column] - pruned) / factor[column, column]
            part[:, column:] -= errors[:, column, None] @ factor[None, column, column:]
            part[:, column] = pruned
        work[:, block] = part
        work[:, block.stop :] -= errors @ upper[block, block.stop :]
    return work.to(weight.dtype)


def published_mask(weight: Tensor, norms: Tensor, count: int) -> Tensor:
    """Return a weight after Wanda (arXiv 2306.11695, equation 1), the same share of each row."""
    order = (weight.abs() * norms).sort(dim=1, stable=True).indices
    removed = order[:, : round(count / len(weight))]
    return weight.clone().scatter_(1, removed, 0)


def n_bytes(made: Copies | Supernet) -> int:
    if isinstance(made, Supernet):
        tensors = [t for v in made.variants.values() for t in v.tensors().values()]
    else:
        tensors = [weight for levels in made.values() for weight in levels.values()]
    return sum(tensor.nbytes for tensor in tensors)


def switching(space: SearchSpace, made: Copies | Supernet, subject: PrunableModel) -> float:
    """Return the seconds of a switch between offspring of the uniform candidate."""
    history = History()
    history.close_round([space.origin])
    searcher = EvolutionSearcher(max_switches=SWITCHES, strides=(1,))
    children = searcher.ask(space, history, OFFSPRING, create_generator(0, "switching"))
    profiles = [space.profile(child) for child in (space.origin, *children)]
    if isinstance(made, Supernet):
        with made.resident() as switch:
            switch.to(profiles[0])
            started = time.process_time()
            for profile in profiles[1:]:
                switch.to(profile)
            return (time.process_time() - started) / OFFSPRING
    with subject.preserved(), torch.inference_mode():
        current: dict[str, int] = {}
        for number, profile in enumerate(profiles):
            if number == 1:
                started = time.process_time()
            for unit, count in zip(profile.layout, profile.removed, strict=True):
                if current.get(unit.name) != count:
                    subject.views[unit.name].write(made[unit.name][count])
                    current[unit.name] = count
        return (time.process_time() - started) / OFFSPRING


def opened(arguments: argparse.Namespace) -> tuple[PrunableModel, Tensor, SearchSpace]:
    """Return the model's first blocks, the calibration text, and the levels to build."""
    source = f"file:{arguments.text}"
    config = load_config(None, {"model.name": "smollm2", "budget.sparsity": TARGET})
    requests = [Request("calibration", source, arguments.sequences, LENGTH)]
    session = open_session(config.model, requests, 0, Monitor())
    model: Any = session.loaded.model
    model.model.layers = model.model.layers[: arguments.blocks]
    model.config.num_hidden_layers = arguments.blocks
    subject = PrunableModel(model)
    space = load_space("per_linear").of_levels.build(subject.layout, Budget(TARGET), {})
    return subject, session.text["calibration"], space


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    subject, tokens, space = opened(arguments)
    rows = []
    for name in ("wanda", "sparsegpt"):
        pruner = PRUNERS.create(name)
        tables = space.tables()
        plan = SupernetDesign(
            pruner=pruner, tables=tables, centre=space.base, propagate=arguments.propagate
        )
        ways: dict[str, Callable[[], Copies | Supernet]] = {
            "naive": lambda pruner=pruner, t=tables: naive(subject, tokens, t, pruner),  # type: ignore[misc]
            "ours": lambda plan=plan: build_supernet(subject, tokens, plan),  # type: ignore[misc]
        }
        figures: dict[str, list[tuple[float, float, int]]] = {way: [] for way in ways}
        for _ in range(arguments.repeats):
            for way, make in ways.items():
                started = time.process_time()
                made = make()
                seconds = time.process_time() - started
                figures[way].append((seconds, switching(space, made, subject), n_bytes(made)))
                del made
        rows.append(
            {"pruner": name, "levels": sum(map(len, tables)) / len(tables), **ratios(figures)}
        )
        print(rows[-1], flush=True)
    return rows


def ratios(figures: dict[str, list[tuple[float, float, int]]]) -> dict[str, Any]:
    """Return ours as a ratio of the naive way, repeat by repeat, and both ways' medians."""
    found: dict[str, Any] = {}
    for index, what in enumerate(("build", "switch", "bytes")):
        pairs = list(zip(figures["ours"], figures["naive"], strict=True))
        each = [ours[index] / theirs[index] for ours, theirs in pairs]
        found[what] = {
            "ratio": statistics.median(each),
            "from": min(each),
            "to": max(each),
            **{way: statistics.median(f[index] for f in of) for way, of in figures.items()},
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--propagate", default="centre")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [{"propagate": arguments.propagate, **row} for row in measure(arguments)]
    if arguments.out:
        merge_rows(arguments.out, rows, "propagate", "pruner")


if __name__ == "__main__":
    main()
