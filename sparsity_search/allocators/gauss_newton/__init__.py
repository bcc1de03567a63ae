"""Gauss–Newton steps of a profile on the divergence of the pruned model."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import numpy as np
from torch import Tensor

from sparsity_search.allocators.gauss_newton.descent import Descent
from sparsity_search.allocators.gauss_newton.grid import Grid, pattern_grid, step_grid
from sparsity_search.errors import ConfigError
from sparsity_search.interfaces.allocator import Allocation, AllocationProblem, Allocator
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.interfaces.units import ALL_UNITS
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.anatomy.views import NOT_LINEAR, are_linear
from sparsity_search.models.running.divergence_expansion import DivergenceExpansion
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.pruning.patterns import groups_of
from sparsity_search.registry import ALLOCATORS, PRUNERS, plugin_field
from sparsity_search.supernet.build import SupernetDesign, build_supernet
from sparsity_search.supernet.disk import SupernetFolder

#: Sparsity between levels. All levels together cost a byte for each weight if masks nest, else
#: each costs a copy.
_FINE, _COARSE = 0.01, 0.05


@dataclass(frozen=True, kw_only=True)
class GaussNewtonAllocator(Allocator):
    """Descent of a profile by gradients of ``KL(dense ‖ pruned)`` of the pruned model.

    Each step predicts the change of the divergence for every level of every unit alone: the
    gradient along the change of weights, and half its Fisher information. The next profile
    minimises the sum over units within the budget and a trust region. A step that does not lower
    the divergence on its text is taken back, and the region is halved. Unlike sensitivities of
    the dense model, gradients of the pruned model account for the losses of the other units.

    The method is this project's own. The second order follows Fisher pruning (Theis et al., arXiv
    1801.05787, section 2.2), the trust region Nocedal and Wright, Numerical Optimization,
    chapter 4.

    Attributes:
        pruner: Pruner of the items. A pruner that changes the weights it keeps needs a copy of
            them for each level, in a folder for temporary files.
        start: Allocator of the first profile.
        stages: Number of stages, each on a supernet around the last result. The inputs of a
            unit, and so its loss, follow the profile.
        steps: Number of steps in a stage; each costs about six forward passes of the text.
        reach: Greatest change of a unit's sparsity in the first step.
        span: Greatest change of it in all steps of a stage, at least one level; by default
            ``steps`` times ``reach``.
        spacing: Sparsity between two levels of a unit; by default 0.01, or 0.05 with a pruner
            that changes weights.
        sequences: Greatest number of sequences of the calibration text.
        length: Greatest number of tokens of each sequence.
        positions: Number of positions of each sequence used for the second order.
        seed: Seed of the labels drawn, and of ties among the pruner's scores.
    """

    units: ClassVar[tuple[str, ...]] = ALL_UNITS

    pruner: Pruner = plugin_field(PRUNERS, "wanda")
    start: Allocator = plugin_field(ALLOCATORS, "uniform")
    stages: int = 1
    steps: int = 4
    reach: float = 0.1
    span: float | None = None
    spacing: float | None = None
    sequences: int = 8
    length: int = 512
    positions: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("stages", "steps", "sequences", "length", "positions"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("reach", "span", "spacing"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ConfigError(f"{name} must lie in (0, 1], not {value}")

    @property
    def supernet(self) -> tuple[Pruner, int]:
        """All levels that the steps of a stage can reach."""
        span = self.span or self.steps * self.reach
        return self.pruner, 1 + 2 * math.ceil(span / self._spacing)

    @property
    def _spacing(self) -> float:
        return self.spacing or (_COARSE if self.pruner.updates else _FINE)

    def propose(self, problem: AllocationProblem) -> Allocation:
        """Return the profile of least divergence, with the divergence of each step as a note.

        Raises:
            ConfigError: A unit is not made of linear layers.
            InfeasibleBudgetError: No profile within the bounds meets the budget.
        """
        subject, tokens = problem.subject, problem.tokens
        if not are_linear(subject.views.values()):  # the steps would see it after the supernet
            raise ConfigError(NOT_LINEAR)
        budget, bounds = problem.budget, problem.bounds
        profile = self.start.allocate(subject, tokens, budget, bounds)
        notes = []
        for _ in range(self.stages):
            profile, values = self._run_stage(subject, tokens, profile, budget, bounds)
            trace = " → ".join(f"{value:.4g}" for value in values)
            notes.append(f"KL on calibration text, from the start on: {trace} nats a token")
        return Allocation(profile, notes=tuple(notes))

    def _run_stage(
        self,
        subject: PrunableModel,
        tokens: Tensor,
        start: SparsityProfile,
        budget: Budget,
        bounds: Bounds,
    ) -> tuple[SparsityProfile, list[float]]:
        """Return the result and divergences of steps from a profile on a supernet around it."""
        grid = self._grid(start, budget, bounds)
        reach = grid.reach(self.reach)
        far = grid.levels_within(self.span) if self.span else self.steps * reach
        grid = grid.within(far)
        text = tokens[: self.sequences, : self.length]
        divergence = DivergenceExpansion(subject, text, self.positions, self.seed)
        design = SupernetDesign(
            pruner=self.pruner,
            tables=grid.counts,
            centre=grid.profile(grid.start),
            seed=self.seed,
        )
        place = TemporaryDirectory() if self.pruner.updates else nullcontext()
        with place as name:
            folder = None if name is None else SupernetFolder(Path(name), {})
            supernet = build_supernet(subject, tokens, design, folder)
            descent = Descent(supernet, divergence, grid, budget.n_removed(start.layout))
            levels, values = descent.run(self.steps, reach)
        profile = grid.profile(levels)
        if not grid.final:
            profile = budget.project(start.layout, np.array(profile.sparsities), bounds)
        return profile, values

    def _grid(self, start: SparsityProfile, budget: Budget, bounds: Bounds) -> Grid:
        groups = groups_of(self.pruner)
        if groups is None:
            return step_grid(start, bounds, self._spacing)
        return pattern_grid(start, bounds, budget, str(groups))
