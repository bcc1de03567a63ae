"""One threshold on the magnitude of all weights of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sparsity_search.allocators.bases.thresholds import count_below_threshold, soften_bounds
from sparsity_search.interfaces.allocator import Allocation, AllocationProblem, Allocator
from sparsity_search.models.anatomy.views import WeightView


@dataclass(frozen=True, kw_only=True)
class GlobalMagnitudeAllocator(Allocator):
    """One threshold on ``|W_ij|`` for all units, each of which keeps a least fraction.

    Global magnitude pruning with a minimum threshold (GlobalMP, Gupta et al. 2022, arXiv
    2209.14624). A structure has the root mean square of its weights. Equal magnitudes at the
    threshold are shared among the units in proportion.

    The released code keeps at least 0.05 % of *all* weights in each unit. Over ``U`` equal units
    that is the fraction ``0.0005 U`` of one: 2.7 % in ResNet-50, 11 % in LLaMA-7B with its 224
    linears. Here it is a fraction of the unit itself, between the two.

    Args:
        floor: Least fraction of its items that a unit keeps. A positive one keeps at least one
            item. It gives way only where the budget cannot be met otherwise.
    """

    units: ClassVar[tuple[str, ...]] = ("weights", "width", "heads", "experts")
    needs_text: ClassVar[bool] = False
    experimental: ClassVar[str] = (
        "perplexity at 70% 1.11 times that of uniform with SparseGPT, 1.34 times with Wanda "
        "(SmolLM2-135M)"
    )

    floor: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.floor < 1:
            raise ValueError(f"floor must be in [0, 1), not {self.floor}")

    def propose(self, problem: AllocationProblem) -> Allocation:
        """Return the profile of the global threshold, above the floors.

        Raises:
            NumericalError: A weight is not finite.
        """
        layout, views = problem.layout, problem.subject.views
        most = (1 - self.floor) * layout.counts
        limits = soften_bounds(layout, problem.bounds, most, problem.n_removed)
        counts = count_below_threshold(
            layout, lambda name: read_magnitudes(views[name]), limits, problem.n_removed
        )
        return Allocation(problem.budget.project(layout, counts / layout.counts, limits))


def read_magnitudes(view: WeightView) -> Tensor:
    """Return the magnitude of each item of a unit, ``(count,)`` float32.

    Where structures stand in groups, item by item, the least of each group are taken together.
    """
    weight, shape = view.read(), view.structures
    if shape is None:
        return weight.float().abs().flatten()
    squares = shape.bodies(weight).float().square().mean(dim=(0, 2))
    return shape.by_group(squares).sort(dim=1).values.mean(dim=0).sqrt()
