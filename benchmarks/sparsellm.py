"""SparseLLM's joint update of a feed-forward, beside pruners of single layers: docs/pruners.md.

    python benchmarks/sparsellm.py --data DATA --results benchmarks/results/sparsellm.json

SparseLLM (Bai et al. 2024, arXiv 2402.17946, section 4) splits a gated feed-forward into three
layer problems with auxiliary variables, and prunes them in turns. The authors' code takes the last
round. Here the best one is taken, by the error of the feed-forward's output; least squares share
one Cholesky factor in place of pseudo-inverses, and gates move by Gauss-Newton steps that lower
the objective of each element. Rows with ``rounds`` are its; those with 1 prune with the layers'
own problems alone. The profile is uniform. Cases that ``--results`` has are skipped.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tables import merge_rows, read_table  # these files are beside this one
from targets import measure_perplexities, open_model
from torch import Tensor
from torch.nn.functional import silu

from sparsity_search.engine.session import Session
from sparsity_search.evidence.evidence import Evidence
from sparsity_search.evidence.masks import cast_nonzero
from sparsity_search.evidence.statistics import InputStatistics, Statistic
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Budget
from sparsity_search.pruning.walk import visit_units, walk_for
from sparsity_search.registry import PRUNERS

#: Ridge of all least squares, as a fraction of the mean of the diagonal.
RIDGE = 0.01
#: Steps that move the gates in a round.
GATE_STEPS = 3
#: Role → part of a feed-forward.
PARTS = ("gate", "up", "down")


@dataclass(frozen=True)
class Case:
    """One measurement; ``rounds`` is 0 for layers pruned one after another."""

    sparsity: float
    pruner: str
    towards_dense: float
    rounds: int

    @property
    def name(self) -> str:
        return "-".join(map(str, asdict(self).values()))


CASES = [
    Case(sparsity, pruner, share, rounds)
    for sparsity in (0.7, 0.8, 0.5)
    for share in (0.0, 0.25)
    for pruner, rounds in (("sparsegpt", 0), ("sparsegpt", 4), ("alps", 0), ("sparsegpt", 1))
]


class Weights(NamedTuple):
    """Weights of a gated feed-forward; each ``(rows, columns)``."""

    gate: Tensor
    up: Tensor
    down: Tensor

    def run(self, inputs: Tensor) -> Tensor:
        """Return the outputs for inputs, ``(tokens, width)``."""
        return (silu(inputs @ self.gate.T) * (inputs @ self.up.T)) @ self.down.T


class FeedForward:
    """The joint problem of a feed-forward.

    Args:
        dense: Its dense weights.
        inputs: ``(tokens, width)`` float32, of the pruned model.
        target: What it should put out, of the same shape.
        pruner: Prunes single layers.
        counts: Weights to remove of each part.
    """

    def __init__(
        self, dense: Weights, inputs: Tensor, target: Tensor, pruner: Pruner, counts: list[int]
    ) -> None:
        self.dense, self.inputs, self.target = dense, inputs, target
        self._pruner, self._counts = pruner, counts
        self._statistics = gather(inputs)

    def prune(self, rounds: int) -> tuple[Weights, list[float]]:
        """Return the pruned weights of the best round, and the error after each."""
        gates = self.inputs @ self.dense.gate.T
        ups = self.inputs @ self.dense.up.T
        hidden = silu(gates) * ups
        weights, best, errors = self.dense, self.dense, []
        for turn in range(rounds):
            statistics = gather(hidden)
            if turn:
                weights = Weights(
                    solve(self.inputs, gates, self._statistics),
                    solve(self.inputs, ups, self._statistics),
                    solve(hidden, self.target, statistics),
                )
            weights = self._prune_each(weights, statistics)
            errors.append(float((weights.run(self.inputs) - self.target).square().mean()))
            if errors[-1] == min(errors):
                best = weights
            if turn < rounds - 1:
                hidden = move_hidden(weights.down, self.target, silu(gates) * ups)
                ups = move_ups(self.inputs @ weights.up.T, silu(gates), hidden)
                gates = move_gates(gates, self.inputs @ weights.gate.T, ups, hidden)
        return best, errors

    def _prune_each(self, weights: Weights, hidden: InputStatistics) -> Weights:
        read = (self._statistics, self._statistics, hidden)
        return Weights._make(
            self._pruner.prune(weight, Evidence(inputs=inputs), [count], seed=0).at(weight, count)
            for weight, inputs, count in zip(weights, read, self._counts, strict=True)
        )


def gather(inputs: Tensor) -> InputStatistics:
    """Return the statistics of inputs, ``(tokens, width)``."""
    statistics = InputStatistics(inputs.shape[1], Statistic.HESSIAN)
    statistics.add(inputs)
    return statistics


def solve(inputs: Tensor, outputs: Tensor, statistics: InputStatistics) -> Tensor:
    """Return the weights that bring inputs nearest to outputs."""
    upper = statistics.inverse_factor(RIDGE).upper
    return (outputs.T @ inputs / len(inputs)) @ upper.T @ upper


def move_hidden(down: Tensor, target: Tensor, made: Tensor) -> Tensor:
    """Return the ``p`` of least ``‖target - p downᵀ‖² + ‖p - made‖²``."""
    # (I + WᵀW)⁻¹ by a matrix of the smaller side
    small = torch.eye(len(down)) + down @ down.T
    right = target @ down + made
    return right - torch.linalg.solve(small, down @ right.T).T @ down


def move_ups(linear: Tensor, gates: Tensor, hidden: Tensor) -> Tensor:
    """Return the ``z`` of least ``(z - linear)² + (hidden - gates z)²``, element by element."""
    return (linear + gates * hidden) / (1 + gates.square())


def move_gates(gates: Tensor, linear: Tensor, ups: Tensor, hidden: Tensor) -> Tensor:
    """Return ``s`` of lower ``(s - linear)² + (hidden - silu(s) ups)²``, element by element."""

    def measure(s: Tensor) -> Tensor:
        return (s - linear).square() + (hidden - silu(s) * ups).square()

    for _ in range(GATE_STEPS):
        share = gates.sigmoid()
        slope = share * (1 + gates * (1 - share)) * ups
        residual = hidden - silu(gates) * ups
        step = (linear - gates + slope * residual) / (1 + slope.square())
        gates = torch.where(measure(gates + step) < measure(gates), gates + step, gates)
    return gates


def prune(subject: PrunableModel, tokens: Tensor, case: Case) -> Iterator[list[float]]:
    """Prune a model in place; yield the errors of the rounds of each feed-forward."""
    pruner: Pruner = PRUNERS.create(case.pruner, towards_dense=case.towards_dense)
    plain: Pruner = PRUNERS.create(case.pruner, towards_dense=0.0)
    profile = Budget(case.sparsity).uniform(subject.layout)
    mlps = [block.mlp for block in subject.blocks]
    seen: dict[int, list[Tensor]] = {block: [] for block in range(len(mlps))}
    handles = [
        mlp.register_forward_pre_hook(lambda _, args, kept=seen[block]: kept.append(args[0]))
        for block, mlp in enumerate(mlps)
    ]
    wide: dict[str, Tensor] = {}
    dense_inputs: list[Tensor] = []
    try:
        for visit in walk_for(pruner, subject, tokens, rewritten=True):
            runs = seen[visit.block]
            if visit.units[0].role == "q":  # the dense model has run last, if it is needed
                dense_inputs = list(runs) if case.towards_dense else []
            if case.rounds and visit.units[0].role in PARTS[:2]:
                inputs = flatten(runs)
                wide, errors = join(
                    subject, visit.block, inputs, dense_inputs, (plain, profile, case)
                )
                yield errors
            runs.clear()
            for reached in visit_units(subject, visit):
                count = profile.states[subject.layout.position(reached.unit.name)][0]
                weight = wide.pop(reached.unit.name, None)
                if weight is None:
                    weight = reached.prune(pruner, [count], 0).at(reached.weight, count)
                reached.view.write(weight)
    finally:
        for handle in handles:
            handle.remove()
    subject.verify(profile)


def join(
    subject: PrunableModel,
    block: int,
    inputs: Tensor,
    dense_inputs: list[Tensor],
    how: tuple[Pruner, Any, Case],
) -> tuple[dict[str, Tensor], list[float]]:
    """Prune a feed-forward jointly; return its weights by name, and the errors of the rounds."""
    pruner, profile, case = how
    units = {unit.role: unit for unit in subject.units_of(block) if unit.role in PARTS}
    names = [units[part].name for part in PARTS]
    dense = Weights._make(subject.views[name].read().float() for name in names)
    target = dense.run(inputs)
    if dense_inputs:
        last = flatten(dense_inputs)[-len(inputs) :]
        target += case.towards_dense * (dense.run(last) - target)
    counts = [profile.states[subject.layout.position(name)][0] for name in names]
    weights, errors = FeedForward(dense, inputs, target, pruner, counts).prune(case.rounds)
    dtype = subject.views[names[0]].read().dtype
    pairs = zip(names, weights, strict=True)
    return {name: cast_nonzero(weight, dtype) for name, weight in pairs}, errors


def flatten(runs: list[Tensor]) -> Tensor:
    """Return batches ``(..., width)`` as ``(tokens, width)`` float32."""
    return torch.cat([run.reshape(-1, run.shape[-1]) for run in runs]).float()


@torch.no_grad()
def measure(case: Case, session: Session) -> Mapping[str, Any]:
    """Prune the model, and restore it."""
    subject = session.subject
    with subject.preserved():
        started = time.process_time()
        errors = list(prune(subject, session.text["calibration"], case))
        seconds = time.process_time() - started
        perplexities = measure_perplexities(session)
    best = [each.index(min(each)) + 1 for each in errors]
    taken = {str(turn): best.count(turn) for turn in sorted(set(best))}
    gain = [min(each) / each[0] for each in errors]
    return {
        **asdict(case),
        **perplexities,
        "cpu_seconds": round(seconds, 1),
        "rounds_taken": taken,
        "error_of_best_to_first": round(sum(gain) / len(gain), 3) if gain else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2", help="of the form of Llama")
    parser.add_argument("--data", type=Path, required=True, help="folder of the texts")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--case", nargs="+", default=["*"], metavar="PATTERN")
    parser.add_argument("--windows", type=int, default=20, help="of 1,024 tokens of the test text")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    file: Path = arguments.results
    keys = tuple(asdict(CASES[0]))
    known = read_table(file)["rows"] if file.exists() else []
    done = {tuple(row[key] for key in keys) for row in known}
    wanted = [case for case in CASES if any(fnmatch(case.name, p) for p in arguments.case)]
    session = open_model(arguments.model, arguments.data, arguments.windows)
    for case in wanted:
        if tuple(asdict(case).values()) in done:
            continue
        row = {**measure(case, session), "windows": arguments.windows}
        merge_rows(file, [row], *keys)
        print(row, flush=True)


if __name__ == "__main__":
    main()
