"""What sharing saves: many levels of SparseGPT, and of removed columns, against one at a time.

Both sides run in one process, in turns, on random weights of SmolLM2-135M's shapes with
correlated inputs, and their results are compared. Time is that of all threads of this process
(CPU seconds), so that other work on the machine hardly shows in it:

    python benchmarks/pruner_cost.py --blocks 1 --repeats 3 --threads 1
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import TypeVar

import torch
from torch import Tensor
from torch.linalg import cholesky

from sparsity_search.evidence.evidence import Evidence
from sparsity_search.evidence.statistics import InputStatistics, Statistic
from sparsity_search.evidence.structures import StructureLayout
from sparsity_search.pruners.bases.columns import ColumnFit, EliminationSettings, eliminate
from sparsity_search.pruners.sparsegpt import SparseGPTPruner
from sparsity_search.pruners.structured_obs import StructuredOBSPruner

T = TypeVar("T")
LEVELS, BLOCK, DAMPING, CHUNK = 17, 128, 0.01, 512
HIDDEN, CHANNELS = 576, 1536
#: Linears that read one tensor, by its width: their outputs.
READERS = {
    "hidden": (HIDDEN, {"q": 576, "k": 192, "v": 192}),
    "heads": (HIDDEN, {"o": 576}),
    "normed": (HIDDEN, {"gate": 1536, "up": 1536}),
    "channels": (CHANNELS, {"down": 576}),
}
Weights = dict[str, Tensor]
Inputs = dict[str, Tensor]
Pruned = dict[str, list[Tensor]]


class Clock:
    """CPU seconds of named stages, one number for each run."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = {}

    def time(self, name: str, work: Callable[[], T]) -> T:
        started = time.process_time()
        found = work()
        self.add(name, time.process_time() - started)
        return found

    def add(self, name: str, seconds: float) -> None:
        self.spent.setdefault(name, []).append(seconds)

    def row(self, name: str, label: str, than: str | None = None) -> None:
        """Print one line: median, spread, and the ratio to another stage's median."""
        times = self.spent[name]
        spread = f"{min(times):.2f} - {max(times):.2f}"
        ratio = f"{median(times) / median(self.spent[than]):6.2f}" if than else "      "
        print(f"{label:<60}{median(times):8.2f}  {spread:<15}{ratio}")


def correlated(n_tokens: int, width: int, seed: int) -> Tensor:
    """Return ``(n_tokens, width)`` inputs: a few common directions, noise, unequal scales."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(n_tokens, width // 8, generator=generator)
    mixed = common @ torch.randn(width // 8, width, generator=generator) / (width // 8) ** 0.5
    noise = torch.randn(n_tokens, width, generator=generator)
    return (mixed + 0.7 * noise) * (0.7 * torch.randn(width, generator=generator)).exp()


def block(n_tokens: int, seed: int) -> tuple[Weights, Inputs]:
    """Return one block's weights by linear, and inputs by tensor."""
    generator = torch.Generator().manual_seed(1000 + seed)
    weights = {
        name: 0.05 * torch.randn(rows, width, generator=generator)
        for width, readers in READERS.values()
        for name, rows in readers.items()
    }
    tensors = enumerate(READERS.items())
    return weights, {
        key: correlated(n_tokens, width, 10 * seed + i) for i, (key, (width, _)) in tensors
    }


def counts_of(size: int, n_levels: int = LEVELS) -> list[int]:
    """Return equally spaced counts between none and all."""
    return [size * level // (n_levels + 1) for level in range(1, n_levels + 1)]


# ---- SparseGPT: ours ---------------------------------------------------------------------------


def shared(weights: Weights, inputs: Inputs, clock: Clock) -> Pruned:
    """Prune a block to all levels: a Hessian and factor a tensor, a stacked sweep a linear."""
    started, found = time.process_time(), {}
    for key, (width, readers) in READERS.items():
        statistics = InputStatistics(width, Statistic.HESSIAN)
        for chunk in inputs[key].split(CHUNK):
            statistics.add(chunk)
        pruner = SparseGPTPruner(damping=DAMPING, block_size=BLOCK)
        for name in readers:
            weight, counts = weights[name], counts_of(weights[name].numel())
            variants = pruner.prune(weight, Evidence(inputs=statistics), counts, seed=0)
            found[name] = [variants.at(weight, count) for count in counts]
    clock.add("shared", time.process_time() - started)
    return found


# ---- SparseGPT: as published (arXiv 2301.00774, algorithm 1), float32 ---------------------------


def separate(weights: Weights, inputs: Inputs, clock: Clock) -> Pruned:
    """Prune a block to all levels, each for itself: Hessian, factor and sweep of each linear."""
    started = time.process_time()
    found: Pruned = {name: [] for name in weights}
    for level in range(LEVELS):
        for key, (_, readers) in READERS.items():
            for name in readers:
                weight = weights[name]
                hessian = clock.time("hessians", lambda: accumulated(inputs[key]))  # noqa: B023
                upper = clock.time("factors", lambda: inverse_factor(hessian))  # noqa: B023
                count = counts_of(weight.numel())[level]
                swept = clock.time("sweeps", lambda: sweep(weight, upper, count))  # noqa: B023
                found[name].append(swept)
    clock.add("separate", time.process_time() - started)
    return found


def accumulated(inputs: Tensor) -> Tensor:
    """Return the mean of ``x xᵀ``, summed chunk by chunk."""
    hessian = torch.zeros(inputs.shape[1], inputs.shape[1])
    for chunk in inputs.split(CHUNK):
        hessian.addmm_(chunk.T, chunk, alpha=1 / len(inputs))
    return hessian


def inverse_factor(hessian: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the inverse damped Hessian."""
    damped = hessian.clone()
    damped.diagonal().add_(DAMPING * hessian.diagonal().mean())
    return cholesky(torch.cholesky_inverse(cholesky(damped)), upper=True)


def sweep(weight: Tensor, upper: Tensor, count: int) -> Tensor:
    """Return the weight after one sweep, with its share of ``count`` zeros in each block."""
    work, done = weight.clone(), 0
    for start in range(0, work.shape[1], BLOCK):
        end = min(start + BLOCK, work.shape[1])
        inside, factor = work[:, start:end], upper[start:end, start:end]
        saliency = inside.square() / factor.diagonal().square()
        number = count * end // work.shape[1] - done
        done += number
        removed = saliency <= saliency.flatten().kthvalue(max(number, 1)).values
        errors = torch.zeros_like(inside)
        for j in range(end - start):
            kept = inside[:, j].masked_fill(removed[:, j], 0)
            errors[:, j] = (inside[:, j] - kept) / factor[j, j]
            inside[:, j:] -= torch.outer(errors[:, j], factor[j, j:])
            inside[:, j] = kept
        work[:, end:] -= errors @ upper[start:end, end:]
    return work


def compare(ours: Pruned, theirs: Pruned) -> tuple[float, float]:
    """Return shares: masks that differ, and the difference of weights; refuse larger ones."""
    masks = changes = 0.0
    for name, levels in ours.items():
        for one, other in zip(levels, theirs[name], strict=True):
            assert int((one == 0).sum()) == int((other == 0).sum()), name
            masks = max(masks, float(((one == 0) != (other == 0)).float().mean()))
            changes = max(changes, float((one - other).norm() / one.norm()))
    # a saliency that ties with the threshold in float32 moves one weight, and a few after it
    assert masks < 1e-3, masks
    assert changes < 2e-2, changes
    return masks, changes


# ---- Columns -----------------------------------------------------------------------------------


def greedy_published(weight: Tensor, hessian: Tensor, depth: int, inner: int) -> Tensor:
    """Return the first ``depth`` groups of one greedy elimination (arXiv 2302.04089), float32.

    Weights and inverse are downdated a group at a time.
    """
    rows, count = len(weight), weight.shape[1] // inner
    work, inverse = weight.clone(), torch.cholesky_inverse(cholesky(hessian)).float()
    gone, order = torch.zeros(count, dtype=torch.bool), []
    for _ in range(depth):
        square = inverse.view(count, inner, count, inner)
        blocks = square.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        blocks = blocks + torch.eye(inner) * gone[:, None, None]
        groups = work.view(rows, count, inner).transpose(0, 1)
        if inner == 1:
            scores = work.square().sum(0) / blocks.flatten()
        else:
            scores = (groups @ torch.linalg.inv(blocks) * groups).sum(dim=(1, 2))
        group = int(scores.masked_fill(gone, torch.inf).argmin())
        p = slice(group * inner, (group + 1) * inner)
        step = torch.linalg.solve(inverse[p, p], inverse[p])
        work.addmm_(work[:, p].clone(), step, alpha=-1)
        inverse.addmm_(inverse[:, p].clone(), step, alpha=-1)
        work[:, p] = 0
        inverse[p], inverse[:, p] = 0, 0
        gone[group] = True
        order.append(group)
    return torch.tensor(order)


def columns(weight: Tensor, inputs: Tensor, inner: int, clock: Clock, tag: str) -> float:
    """Time both on one consumer; return how much more error the worse order has at a level."""
    count = weight.shape[1] // inner
    statistics = InputStatistics(weight.shape[1], Statistic.HESSIAN)
    statistics.add(inputs)
    shape = StructureLayout(count=count, inner=inner, width=inner)
    matrix = torch.cat([weight, torch.zeros(len(weight), 1)], dim=1)
    evidence = Evidence(inputs=statistics, structures=shape)
    statistics.inverse_factor(DAMPING)
    levels = sorted({*counts_of(count, min(LEVELS, count - 1))})
    curve = clock.time(f"{tag} ours", lambda: StructuredOBSPruner().error_curve(matrix, evidence))
    hessian = statistics.damped_hessian(DAMPING)

    def published() -> Tensor:
        again = statistics.damped_hessian(DAMPING)
        return greedy_published(weight, again, levels[-1], inner)

    theirs = clock.time(f"{tag} published", published)
    steps = EliminationSettings(per_step=8)
    if inner == 1:
        clock.time(f"{tag} by 8", lambda: eliminate(weight, hessian, count, steps))
    table = lambda: StructuredOBSPruner().prune(matrix, evidence, levels, seed=0)  # noqa: E731
    clock.time(f"{tag} weights", table)
    rest = torch.tensor(sorted(set(range(count)) - set(theirs.tolist())))
    other = ColumnFit.of(weight, hessian, torch.cat([theirs, rest])).errors()
    gap = float((curve / other - 1)[levels].abs().max())
    assert gap < 1e-2, gap
    return gap


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--blocks", type=int, default=1, help="random decoder blocks")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side on each block")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    parser.add_argument("--tokens", type=int, default=8192, help="calibration tokens")
    return parser.parse_args(arguments)


def main() -> None:
    args = options()
    torch.set_num_threads(args.threads)
    clock, worst, gaps = Clock(), (0.0, 0.0), dict.fromkeys(("channels", "heads"), 0.0)
    for number in range(args.blocks):
        weights, inputs = block(args.tokens, number)
        for _ in range(args.repeats):
            ours, theirs = shared(weights, inputs, clock), separate(weights, inputs, clock)
            found = compare(ours, theirs)
            worst = max(worst[0], found[0]), max(worst[1], found[1])
            for tag, name, inner in (("channels", "down", 1), ("heads", "o", 64)):
                gap = columns(weights[name], inputs[tag], inner, clock, tag)
                gaps[tag] = max(gaps[tag], gap)
    report(clock, args, worst, gaps)


def report(
    clock: Clock, args: argparse.Namespace, worst: tuple[float, float], gaps: dict[str, float]
) -> None:
    print(f"python {' '.join(sys.argv)}")
    print(f"torch {torch.__version__}, {args.threads} of {os.cpu_count()} threads", end=", ")
    print(f"{args.tokens} tokens, {args.blocks} x {args.repeats} runs, CPU seconds\n")
    print(f"{'':<60}{'median':>8}  {'min - max':<15} ratio to the part's first line")
    print(f"SparseGPT, {LEVELS} levels of the 7 linears of a block")
    clock.row("shared", "  ours: 4 Hessians, 4 factors, 7 stacked sweeps")
    label = f"  published: {LEVELS} x (7 Hessians, 7 factors, 7 sweeps)"
    clock.row("separate", label, "shared")
    for stage in ("hessians", "factors", "sweeps"):
        share = sum(clock.spent[stage]) / sum(clock.spent["separate"])
        print(f"    of which {stage}: {share:.0%}")
    print(f"  masks differ in at most {worst[0]:.1e} of weights, weights by {worst[1]:.1e}\n")
    for tag, what in (("channels", "1536 channels"), ("heads", "9 heads of 64")):
        print(f"Columns, {what}; the statistics are given to both sides")
        clock.row(f"{tag} published", "  published: one elimination to the deepest level")
        clock.row(f"{tag} ours", "  ours: order of all, errors of every count", f"{tag} published")
        if f"{tag} by 8" in clock.spent:
            clock.row(f"{tag} by 8", "  ours: order only, 8 channels a step", f"{tag} published")
        clock.row(f"{tag} weights", "  ours: order, and weights of all levels", f"{tag} published")
        print(f"  errors of the levels differ by at most {gaps[tag]:.1e}\n")


if __name__ == "__main__":
    main()
