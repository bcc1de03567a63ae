"""Predicted changes of the divergence at every level, from gradients of a supernet's model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.interpolate import PchipInterpolator  # type: ignore[import-untyped]

from sparsity_search.errors import NumericalError
from sparsity_search.models.running.divergence_expansion import DivergenceExpansion
from sparsity_search.spaces.hints import Hint
from sparsity_search.spaces.levels import Candidate, SearchSpace
from sparsity_search.supernet.switch import Switch

#: Returns name, count and pattern of each unit of a gene at a level.
States = Callable[[int, int], Sequence[tuple[str, tuple[int, str]]]]

#: Levels on each side of the present one at which a gene is measured; others are interpolated.
_MEASURED = 2


def compute_gradient_hint(
    space: SearchSpace, candidate: Candidate, switch: Switch, divergence: DivergenceExpansion
) -> Hint:
    """Return how ``KL(dense ‖ pruned)`` changes when single genes leave a candidate.

    Args:
        space: Where the candidate lies.
        candidate: Where the gradients are taken; the model is left there.
        switch: Of a supernet that holds the space's levels.
        divergence: Of its model, made while that was dense.

    Returns:
        The hint; losses are changes, negative ones too.

    Raises:
        NumericalError: A gradient is not finite.
    """
    switch.to(space.profile(candidate))
    measured = []
    for gene, present in enumerate(candidate):
        low, high = int(space.limits.lower[gene]), int(space.limits.upper[gene])
        sides = np.linspace(low, present, _MEASURED + 1), np.linspace(present, high, _MEASURED + 1)
        measured.append(np.unique(np.rint(np.concatenate(sides))).astype(int))
    _, hint = predict_changes(space.states, candidate, measured, switch, divergence)
    return hint


def predict_changes(
    states: States,
    present: Sequence[int] | np.ndarray,
    measured: Sequence[np.ndarray],
    switch: Switch,
    divergence: DivergenceExpansion,
) -> tuple[float, Hint]:
    """Return the divergence of the model as it is, and how it changes when single genes move.

    Second order in the change of weights, see `DivergenceExpansion.change`. Gradients of the
    pruned model include the losses of all other units, unlike sensitivities of the dense model.
    Between measured levels the change is interpolated by a monotone cubic (PCHIP).

    Args:
        states: The units' states.
        present: The level of each gene at which the model is.
        measured: Levels of each gene, increasing.
        switch: Of a supernet that holds the states.
        divergence: Of its model, made while that was dense.

    Returns:
        The divergence in nats a token, and for each gene the change at all levels from its first
        to its last measured one.

    Raises:
        NumericalError: A gradient is not finite.
    """
    value, recordings = divergence.recorded()

    def change(gene: int, level: int) -> float:
        if level == present[gene]:
            return 0.0
        return sum(
            divergence.change(unit, switch.change(unit, *state), recordings)
            for unit, state in states(gene, level)
        )

    losses = []
    for gene, levels in enumerate(measured):
        changes = [change(gene, int(level)) for level in levels]
        if not np.isfinite(changes).all():
            unit, _ = states(gene, int(levels[0]))[0]
            raise NumericalError(f"{unit}: its gradients are not finite")
        every = np.arange(levels[0], levels[-1] + 1)
        curve = PchipInterpolator(levels, changes)(every) if len(levels) > 1 else changes
        losses.append(np.asarray(curve, dtype=np.float64))
    lower = np.array([levels[0] for levels in measured], dtype=np.int64)
    return value, Hint("gradients", lower, tuple(losses))
