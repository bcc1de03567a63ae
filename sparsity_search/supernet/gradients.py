"""What every level of every gene is predicted to change, from gradients of a supernet's model."""

from __future__ import annotations

import numpy as np
from scipy.interpolate import PchipInterpolator  # type: ignore[import-untyped]

from sparsity_search.errors import NumericalError
from sparsity_search.models.running.divergence import Divergence
from sparsity_search.spaces.hints import Hint
from sparsity_search.spaces.levels import Candidate, SearchSpace
from sparsity_search.supernet.switch import Switch

#: Levels on each side of the present one at which a gene is measured; others are interpolated.
_MEASURED = 2


def gradient_hint(
    space: SearchSpace, candidate: Candidate, switch: Switch, divergence: Divergence
) -> Hint:
    """Return how ``KL(dense ‖ pruned)`` changes when single genes leave a candidate.

    Second order in the change of weights, see `Divergence.change`. Unlike sensitivities of the
    dense model, gradients of the pruned one know what the other units have lost already.

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
    profile = space.profile(candidate)
    switch.to(profile)
    _, recordings = divergence.recorded()

    def change(gene: int, level: int) -> float:
        if level == candidate[gene]:
            return 0.0
        total = 0.0
        for unit, state in space.states(gene, level):
            moved = switch.change(unit, *state)
            total += divergence.change(unit, moved, recordings)
        return total

    losses = []
    for gene, present in enumerate(candidate):
        low, high = int(space.limits.lower[gene]), int(space.limits.upper[gene])
        sides = np.linspace(low, present, _MEASURED + 1), np.linspace(present, high, _MEASURED + 1)
        known = np.unique(np.rint(np.concatenate(sides))).astype(int)
        values = [change(gene, int(level)) for level in known]
        if not np.isfinite(values).all():
            raise NumericalError(f"the gradients of gene {gene} are not finite")
        every = np.arange(low, high + 1)
        curve = PchipInterpolator(known, values)(every) if len(known) > 1 else values
        losses.append(np.asarray(curve, dtype=np.float64))
    return Hint("gradients", space.limits.lower, tuple(losses))
