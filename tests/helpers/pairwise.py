"""A toy problem whose units act together in pairs, and a search that finds its optimum nearly."""

from __future__ import annotations

import numpy as np

from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.spaces.levels import Candidate, SearchSpace
from sparsity_search.trials.history import Fidelity, Score
from sparsity_search.utils.random import create_generator


class PairwiseProblem:
    """``Σ w_u · exp(4 d_u) + Σ c_uv d_u d_v`` with ``d`` the sparsity over the target, noisy.

    Units of one block, and those of one role in neighbouring blocks, are pairs.
    """

    def __init__(self, space: SearchSpace, seed: int, noise: float = 0.002) -> None:
        rng = create_generator(seed, "pairwise")
        units = list(space.layout)
        self.space, self.noise = space, noise
        self.best = float("inf")  # of what was measured, without noise
        self.weights = np.exp(rng.normal(0, 0.7, len(units)))
        self.weights /= self.weights.sum()
        drawn = rng.normal(0, 5, (len(units), len(units)))
        roots = np.sqrt(self.weights)
        near = [
            [a.block == b.block or (a.role == b.role and abs(a.block - b.block) == 1)
             for b in units] for a in units
        ]  # fmt: skip
        self.pairs = np.triu(drawn * np.outer(roots, roots) * np.array(near), 1)

    def exact(self, candidate: Candidate) -> float:
        return self._of(self.space.profile(candidate))

    def _of(self, profile: SparsityProfile) -> float:
        d = profile.sparsities - self.space.budget.target
        return float(self.weights @ np.exp(4 * d) + d @ self.pairs @ d + 1)

    def __call__(
        self, profile: SparsityProfile, fidelity: Fidelity, known: Score | None = None
    ) -> Score:
        exact = self._of(profile)
        self.best = min(self.best, exact)
        rng = create_generator(fidelity.subset, str(fidelity.tokens), profile.digest)
        value = float(exact + self.noise * rng.normal() / np.sqrt(fidelity.tokens / 64))
        return Score(value, (value,))

    def optimum(self) -> float:
        """Return the least score that descent over single switches finds from three starts."""
        found = []
        for seed in range(3):
            levels = np.array(self.space.sample(create_generator(seed, "start"), 2.0))
            found.append(self._descend(levels))
        return min(found)

    def _descend(self, levels: np.ndarray) -> float:
        low, high = self.space.limits.lower, self.space.limits.upper
        best = self.exact(tuple(levels.tolist()))
        while True:
            options = []
            for up in np.flatnonzero(levels < high):
                for down in np.flatnonzero(levels > low):
                    if up != down:
                        moved = levels.copy()
                        moved[up] += 1
                        moved[down] -= 1
                        options.append((self._quick(moved), moved))
            score, moved = min(options, key=lambda option: option[0])
            if score >= best - 1e-12:
                return best
            best, levels = score, moved

    def _quick(self, levels: np.ndarray) -> float:
        """Return `exact` for a space of one unit a gene, all of one size."""
        d = levels * self.space.step / self.space.layout.counts
        return float(self.weights @ np.exp(4 * d) + d @ self.pairs @ d + 1)


def noise_only(profile: SparsityProfile, fidelity: Fidelity, known: Score | None = None) -> Score:
    """Return a score that has nothing to do with the profile."""
    value = 1.0 + create_generator(fidelity.tokens, profile.digest).random()
    return Score(value, (value,))
