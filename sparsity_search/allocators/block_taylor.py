"""First-order Taylor importance of whole units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsity_search.allocators.bases.depth import DEPTH, RemovalState, check_settings
from sparsity_search.interfaces.allocator import Allocation, AllocationProblem, Allocator
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.gradients import run_backward


@dataclass(frozen=True, kw_only=True)
class BlockTaylorAllocator(Allocator):
    """Removes units by rising ``Σ |w · g|`` over their weights; ``g`` is the loss's gradient.

    The Taylor+ criterion of Shortened LLaMA (Kim et al., arXiv 2402.02834). The weights are those
    of the unit's linear layers and norms, as in the released code. The gradient is the mean over
    sequences. The blocks at both ends, which the model needs most, are kept. The released code
    removes whole blocks only; of a sublayer, the norms inside its module count, not those
    around it.

    Args:
        sequences: Calibration sequences to use; None for all. The paper uses 10.
        keep_first: Blocks at the beginning that go only when no other unit is left.
        keep_last: Blocks at the end that go only when no other unit is left.
    """

    units: ClassVar[tuple[str, ...]] = DEPTH
    experimental: ClassVar[str] = (
        "perplexity 41.2 without 3 of 30 blocks, where block_influence has 24.4 (SmolLM2-135M)"
    )

    sequences: int | None = None
    keep_first: int = 4
    keep_last: int = 2

    def __post_init__(self) -> None:
        check_settings(self.sequences, keep_first=self.keep_first, keep_last=self.keep_last)

    def propose(self, problem: AllocationProblem) -> Allocation:
        """Return the profile that removes the units of least importance.

        Raises:
            NumericalError: No importance is finite.
        """
        removal = RemovalState(problem, keep=(self.keep_first, self.keep_last))
        text = problem.tokens[: self.sequences]
        importances = compute_taylor_importances(problem.subject, text)
        return removal.by_score(dict(enumerate(importances)))


def compute_taylor_importances(subject: PrunableModel, tokens: Tensor) -> list[float]:
    """Return ``Σ |w · g|`` of each unit, in the layout's order.

    Args:
        subject: The model; unchanged afterwards.
        tokens: Calibration text, ``(n_sequences, length)`` int64.

    Raises:
        ConfigError: The model is offloaded.
    """
    units = [_UnitWeights(subject, unit.name) for unit in subject.layout]
    norms = [weight for unit in units for weight in unit.norms]

    def add() -> None:
        for unit in units:
            unit.add_gradients()

    run_backward(subject, [*subject.parameters(), *norms], tokens, add)
    return [unit.sum_products() / len(tokens) for unit in units]


class _UnitWeights:
    """The weights of a unit's linear layers and norms, and the sums of their gradients."""

    def __init__(self, subject: PrunableModel, name: str) -> None:
        self._view = subject.views[name]
        self.norms = find_norm_weights(subject.model.get_submodule(name))
        self._sums = [torch.zeros(weight.shape) for weight in self._read()]

    def add_gradients(self) -> None:
        """Add the gradients of one backward pass."""
        found = [self._view.read_gradient(), *(weight.grad for weight in self.norms)]
        for total, gradient in zip(self._sums, found, strict=True):
            if gradient is not None:  # else the loss does not depend on this norm
                total += gradient.float().cpu()

    def sum_products(self) -> float:
        """Return ``Σ |w · Σ g|``."""
        pairs = zip(self._read(), self._sums, strict=True)
        return sum(float((weight.float().cpu() * total).abs().sum()) for weight, total in pairs)

    def _read(self) -> list[Tensor]:
        return [self._view.read(), *(weight.detach() for weight in self.norms)]


def find_norm_weights(module: nn.Module) -> list[Tensor]:
    """Return the weights of the norms in a module: its parameters of one dimension, no biases."""
    named = module.named_parameters()
    return [p for name, p in named if p.ndim == 1 and name.rpartition(".")[2] == "weight"]
