"""ALS: blocks whose activations resemble those of the others lose more weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from sparsity_search.allocators.bases.blocks import block_sizes
from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.interfaces.allocator import AllocationProblem, Allocator
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.runner import BlockRunner
from sparsity_search.models.running.stream import list_hidden
from sparsity_search.utils.random import create_generator

_SCOPES = ("block", "linear")
#: A feature that varies less than this, relative to its size, does not vary.
_LEAST_VARIATION = 1e-6
#: Redundancies are equal if they agree to so many decimals.
_DECIMALS = 7


@dataclass(frozen=True, kw_only=True)
class ALSAllocator(Allocator):
    """A linear programme prunes what is redundant by the correlation of activations.

    ALS (Li et al., NeurIPS 2024, openreview Jup0qZxH7U). The redundancy metric of two blocks is
    ``‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖)`` in Frobenius norms, for their outputs ``X`` and ``Y`` at the same
    tokens, with every feature at mean 0 and norm 1. A block's weight in the programme is
    ``exp(-(Σ - 1))`` of its sum ``Σ`` over all other blocks: sparsities minimise their sum with
    these weights, at the target and within bounds.

    The paper's code is not public, and it is known here by its abstract and by summaries. Open
    are: which activations are compared (here the hidden states after each block; the outputs of
    linears within a block), the exact bounds, and whether a block's ratio counts by the block's
    size. Here it does, so that equal redundancy gives equal sparsity whatever the sizes. Then
    half of the weights are at the upper bound, half at the lower, in the order of ``Σ``: any
    falling function of it gives the same optimum as the exponential, which is therefore not
    computed. Units of equal redundancy share alike, so all equal give the uniform profile.

    Args:
        per: ``block``: all units of a block share its sparsity. ``linear``: a second programme
            within each block spreads its sparsity over its units, by the redundancy of each
            one's output with those of the block's others.
        reach: Greatest distance of a sparsity from the target when that is 0.5; in proportion to
            ``min(S, 1 - S)`` at other targets. Summaries of the paper have bounds of 30 to 70 %.
        granularity: Distances from the target are multiples of it, in the same proportion; 0 for
            any distance. 5 % is the best in those summaries.
        samples: How many tokens of the text are compared.
        seed: Draws these tokens.
    """

    units: ClassVar[tuple[str, ...]] = ("weights", "width", "heads", "experts")

    per: str = "block"
    reach: float = 0.2
    granularity: float = 0.05
    samples: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        if self.per not in _SCOPES:
            raise ConfigError(f"per must be one of {', '.join(_SCOPES)}, not {self.per!r}")
        if not (0 <= self.reach <= 0.5 and 0 <= self.granularity <= 0.5):
            raise ConfigError("reach and granularity must lie in 0 … 0.5")
        if self.samples < 2:
            raise ConfigError(f"samples must be at least 2, not {self.samples}")

    def propose(self, problem: AllocationProblem) -> np.ndarray:
        """Return sparsities from one pass of the text through the dense model.

        Raises:
            NumericalError: Activations are not finite.
        """
        layout = problem.layout
        between, within = self._redundancies(problem.subject, problem.tokens)
        sizes = np.array(list(block_sizes(layout).values()))
        ratios = self._ratios(between, sizes, problem.target)
        of_block = dict(zip(block_sizes(layout), ratios, strict=True))
        wanted = np.array([of_block[unit.block] for unit in layout])
        for block, redundancy in within.items():
            inner = np.array([i for i, unit in enumerate(layout) if unit.block == block])
            weights = (layout.counts * layout.costs)[inner]
            wanted[inner] = self._ratios(redundancy, weights, float(of_block[block]))
        return wanted

    def _ratios(self, redundancy: np.ndarray, sizes: np.ndarray, target: float) -> np.ndarray:
        scale = 2 * min(target, 1 - target)
        return solve_programme(
            redundancy, sizes, target, reach=scale * self.reach, step=scale * self.granularity
        )

    def _redundancies(
        self, subject: PrunableModel, tokens: Tensor
    ) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """Return those of blocks that have units, and if asked for those of units by block."""
        runner = BlockRunner(subject, tokens)
        hidden = runner.embed()
        rows = sampled_rows([batch.numel() for batch in runner.batches], self.samples, self.seed)
        blocks, within = [], {}
        for block in range(len(subject.blocks)):
            units = [unit.name for unit in subject.units_of(block)]
            watched = units if self.per == "linear" else []
            modules = {name: subject.views[name].module for name in watched}
            with record_outputs(modules, rows) as outputs:
                hidden = runner.run(block, hidden)
            if units:
                states = [
                    h.flatten(0, -2)[r.to(h.device)]
                    for h, r in zip(list_hidden(hidden), rows, strict=True)
                ]
                blocks.append(compute_similarities(states))
            if watched:
                within[block] = compute_redundancies(
                    [
                        compute_similarities(
                            [subject.views[name].outputs(o) for o in outputs[name]]
                        )
                        for name in watched
                    ]
                )
        return compute_redundancies(blocks), within


def sampled_rows(sizes: Sequence[int], samples: int, seed: int) -> list[Tensor]:
    """Return which tokens of each batch are in a random sample of all, without repetition.

    Args:
        sizes: Tokens of each batch.
        samples: Tokens to draw at most.
        seed: Of the draw.

    Returns:
        Positions within each batch, rising, ``(n,)`` int64 each.
    """
    drawn = np.sort(create_generator(seed, "tokens").permutation(sum(sizes))[:samples])
    ends = np.cumsum(sizes)
    parts = np.split(drawn, np.searchsorted(drawn, ends[:-1]))
    starts = ends - np.asarray(sizes)
    return [torch.from_numpy(part - start) for part, start in zip(parts, starts, strict=True)]


@contextmanager
def record_outputs(
    modules: Mapping[str, nn.Module], rows: Sequence[Tensor]
) -> Iterator[dict[str, list[Tensor]]]:
    """Within, outputs of modules are kept at some tokens of each batch, in order.

    Args:
        modules: By name; each runs once a batch.
        rows: The tokens of each batch, ``(n,)`` int64 each.

    Yields:
        Outputs by name, ``(n, width)`` for each batch.
    """
    seen: dict[str, list[Tensor]] = {name: [] for name in modules}

    def hook(found: list[Tensor]) -> Any:
        def take(_: nn.Module, __: Any, output: Any) -> None:
            states = output if isinstance(output, Tensor) else output[0]
            found.append(states.flatten(0, -2)[rows[len(found)].to(states.device)])

        return take

    handles = [m.register_forward_hook(hook(seen[name])) for name, m in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def compute_similarities(states: Sequence[Tensor]) -> Tensor:
    """Return ``X Xᵀ`` of normalised features over its Frobenius norm, ``(n, n)`` float32.

    Its scalar product with that of other states is their redundancy metric, since
    ``‖XᵀY‖² = <X Xᵀ, Y Yᵀ>``: so what is kept of a block does not depend on its width. States
    that do not vary give zeros.

    Args:
        states: Activations in parts, ``(n_i, width)`` each, ``n`` tokens together.

    Raises:
        NumericalError: They are not finite.
    """
    features = torch.cat(list(states)).double()
    if not features.isfinite().all():
        raise NumericalError("activations are not finite: the model's weights are too large")
    size = features.norm(dim=0)
    features -= features.mean(dim=0)
    norms = features.norm(dim=0)
    varies = norms > _LEAST_VARIATION * size
    features *= torch.where(varies, norms, torch.inf).reciprocal()
    products = features @ features.T
    total = torch.linalg.vector_norm(products)
    return torch.where(total > 0, products / total, 0.0).float()


def compute_redundancies(similar: Sequence[Tensor]) -> np.ndarray:
    """Return each one's sum of redundancy metrics with all others, ``(n,)`` float64."""
    metric = np.zeros((len(similar), len(similar)))
    for i, first in enumerate(similar):
        for j, second in enumerate(similar[:i]):
            metric[i, j] = metric[j, i] = float((first * second).sum(dtype=torch.float64))
    return np.asarray(metric.sum(axis=1))


def solve_programme(
    redundancy: np.ndarray, sizes: np.ndarray, target: float, *, reach: float, step: float
) -> np.ndarray:
    """Return the sparsities at which the linear programme is optimal.

    It minimises ``Σ w_i n_i s_i`` for weights ``w_i`` that fall with the redundancy, subject to
    ``Σ n_i s_i = target · Σ n_i`` and ``|s_i - target| <= reach``: a fractional knapsack, filled
    in the order of redundancy until half of ``Σ n_i`` is at the upper bound.

    Args:
        redundancy: ``(n,)``; equal ones share alike.
        sizes: ``n_i``, ``(n,)``, positive.
        target: The mean sparsity.
        reach: Greatest distance from it.
        step: Distances are rounded to multiples of it, unless it is 0.

    >>> values, sizes = np.array([2.0, 3.0, 1.0]), np.array([1, 1, 1])
    >>> solve_programme(values, sizes, 0.5, reach=0.2, step=0).tolist()
    [0.5, 0.7, 0.3]
    """
    _, group = np.unique(-redundancy.round(_DECIMALS), return_inverse=True)
    shares = np.bincount(group, weights=sizes / sizes.sum())
    before = shares.cumsum() - shares
    upper = np.clip((0.5 - before) / shares, 0, 1)[group]
    distance = reach * (2 * upper - 1)
    if step:
        distance = np.clip(step * np.rint(distance / step), -reach, reach)
    return np.asarray(target + distance)
