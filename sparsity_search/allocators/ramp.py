"""A ramp: sparsity rises with depth by one step a block, chosen by how activations change."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sparsity_search.allocators.bases.rescale import rescaled
from sparsity_search.errors import ConfigError
from sparsity_search.evidence.statistics import Statistic
from sparsity_search.interfaces.allocator import Allocation, Allocator
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.walk import Visit, walk
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.registry import PRUNERS, plugin_field
from sparsity_search.utils.random import derive_seed

#: Kinds of units of which a part can be removed.
_KINDS = ("weights", "width", "heads", "experts")
_AGAINST = ("model", "block")
#: NeuroAL's grid.
_SPREADS = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.12, 0.15, 0.2, 0.25)


@dataclass(frozen=True, kw_only=True)
class RampAllocator(Allocator):
    """Sparsity rises by one step a block (ATP); the step changes activations least (NeuroAL).

    Block ``b`` has sparsity ``s_0 + slope · b``, the arithmetic progression of ATP (Huang et al.,
    ICML 2025, arXiv 2502.14770); all units of a block share it. The budget's projection finds
    ``s_0``, and clips what leaves ``[0, 1]`` or the bounds.

    Without a ``slope``, the block step of NeuroAL (Cunegatti et al., TMLR 2025, arXiv 2411.07066)
    chooses it: for each of ``spreads`` the model is pruned block by block, on a few calibration
    sequences. With ``a`` the root mean square of each input of a linear, as shares of their sum,
    and ``d`` inputs, the misalignment of a pruned model is the sum over its linears of
    ``‖a_dense - a_pruned‖₂ / d``. The least one wins, of equal ones the first.

    Args:
        slope: Sparsity that each block has more than the one before it; None chooses.
        spreads: To choose from: half the range of sparsities over blocks (λ in NeuroAL).
        sequences: Calibration sequences to choose with.
        pruner: What prunes the model to choose.
        against: Where ``a_dense`` comes from: the dense ``model``, so that errors of earlier
            blocks count; or each ``block`` before it is pruned, on the pruned model's inputs, as
            in the released code.
    """

    slope: float | None = None
    spreads: tuple[float, ...] = _SPREADS
    sequences: int = 8
    pruner: Pruner = plugin_field(PRUNERS, "wanda")
    against: str = "model"

    def __post_init__(self) -> None:
        if self.slope is not None and not -1 <= self.slope <= 1:
            raise ConfigError(f"slope must lie in [-1, 1], not {self.slope}")
        if not self.spreads or not all(-1 < spread < 1 for spread in self.spreads):
            raise ConfigError(f"spreads must be numbers in (-1, 1), not {self.spreads}")
        if self.sequences < 1:
            raise ConfigError(f"sequences must be at least 1, not {self.sequences}")
        if self.against not in _AGAINST:
            known = ", ".join(_AGAINST)
            raise ConfigError(f"against must be one of {known}, not {self.against!r}")

    def allocate(
        self, subject: PrunableModel, tokens: Tensor, budget: Budget, bounds: Bounds
    ) -> SparsityProfile:
        """Return the ramp.

        Raises:
            ConfigError: The units go as a whole, or the pruner prunes units of another kind.
            InfeasibleBudgetError: No profile within the bounds meets the budget.
            NumericalError: An activation is not finite.
        """
        return self.detailed(subject, tokens, budget, bounds).profile

    def detailed(
        self, subject: PrunableModel, tokens: Tensor, budget: Budget, bounds: Bounds
    ) -> Allocation:
        """Return the ramp, and the misalignment of each that was tried, see `allocate`."""
        layout = subject.layout
        if subject.units not in _KINDS:
            raise ConfigError(f"a ramp needs units {', '.join(_KINDS)}, not {subject.units}")
        budget.check(layout, bounds)
        depths = np.array([unit.block for unit in layout])
        if self.slope is not None:
            rising = self.slope * depths
            return Allocation(budget.project(layout, budget.target + rising, bounds))
        candidates: dict[SparsityProfile, float] = {}
        for spread in self.spreads:
            wanted = budget.target + rescaled(depths, spread)
            candidates.setdefault(budget.project(layout, wanted, bounds), spread)
        if len(candidates) == 1:
            return Allocation(next(iter(candidates)))
        trials = Trials(subject, tokens[: self.sequences], self.pruner)
        found = {profile: trials.misalignment(profile, self.against) for profile in candidates}
        return Allocation(
            min(found, key=lambda profile: found[profile]),
            notes=tuple(
                f"spread {spread:g}: misalignment {found[profile]:.6g}"
                for profile, spread in candidates.items()
            ),
        )


class Trials:
    """Prunes a model to compare its activations with those of the dense one.

    Args:
        subject: The dense model; unchanged after each call.
        tokens: The text, ``(n_sequences, length)`` int64.
        pruner: How to prune.

    Raises:
        ConfigError: The pruner prunes units of another kind.
    """

    def __init__(self, subject: PrunableModel, tokens: Tensor, pruner: Pruner) -> None:
        if subject.units not in pruner.units:
            kinds = " or ".join(pruner.units)
            raise ConfigError(
                f"the ramp's pruner removes {kinds}, not {subject.units}: "
                "choose another, or set slope"
            )
        self._subject = subject
        self._tokens = tokens
        self._pruner = pruner
        self._dense = shares(walk(subject, tokens, Statistic.NORM, rewritten=False))

    def misalignment(self, profile: SparsityProfile, against: str) -> float:
        """Return how far activations move when the model is pruned to ``profile``."""
        with self._subject.preserved():
            before = self._prune(profile)
            pruned = shares(walk(self._subject, self._tokens, Statistic.NORM, rewritten=False))
        dense = self._dense if against == "model" else before
        return sum(float((dense[n] - pruned[n]).norm()) / len(dense[n]) for n in dense)

    def _prune(self, profile: SparsityProfile) -> dict[str, Tensor]:
        """Prune block by block, each seeing the pruned ones before it.

        Returns:
            The shares of each unit's inputs just before its block is pruned.
        """
        subject, pruner, found = self._subject, self._pruner, {}
        pruner.merge(subject, profile)
        visits = walk(
            subject,
            self._tokens,
            max(pruner.requires, Statistic.NORM),
            rewritten=True,
            gradient=pruner.needs_gradient,
        )
        for visit in visits:
            found.update(shares([visit]))
            for unit in visit.units:
                view = subject.views[unit.name]
                count = profile.removed[subject.layout.position(unit.name)]
                seed = derive_seed(0, "ties", unit.name)
                variants = pruner.prune(view.read(), visit.evidence[unit.name], [count], seed=seed)
                view.write(variants.at(view.read(), count))
        return found


def shares(visits: Iterable[Visit]) -> dict[str, Tensor]:
    """Return the root mean squares of each unit's inputs as shares of their sum, float64."""
    found = {}
    for visit in visits:
        for name, statistics in visit.statistics.items():
            norms = statistics.norms().double().cpu()
            found[name] = norms / norms.sum().clamp_min(1e-300)  # all may be zero
    return found
