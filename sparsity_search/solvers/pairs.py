"""Coordinate moves on losses with pairs: the joint loss of two units counts too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparsity_search.profiles.scores import Scores
from sparsity_search.solvers.decisions import Knapsack

#: Most moves in all; one takes some milliseconds.
MOVES = 5000
#: The longest moves go over as many levels, as a power of two.
_LONGEST = 5


def move_coordinates(
    knapsack: Knapsack,
    losses: Sequence[np.ndarray],
    scores: Scores,
    start: np.ndarray,
    shrink: float = 1.0,
) -> np.ndarray:
    """Return levels after coordinate moves, ``(n_groups,)`` int64; the loss never rises.

    A move lowers one group by some levels and raises another by as many, while the total stays
    legal. The best move is made, long ones before short ones, until none helps. With strong
    pairs the result is a local optimum.

    Args:
        knapsack: The levels of each group and the legal totals.
        losses: Loss of each level without pairs, ``(n_levels,)`` for each group.
        scores: Scores with pairs.
        start: A level of each group, ``(n_groups,)``.
        shrink: Factor of the pairs.
    """
    state = _State(knapsack, losses, scores, start, shrink)
    lengths = [2**k for k in range(_LONGEST, -1, -1)]
    left, helped = MOVES, True
    while helped and left:
        helped = False
        for length in lengths:
            state.look(length)
            while left and state.improve():
                left -= 1
                helped = True
    return state.levels


def compute_pair_loss(scores: Scores, counts: np.ndarray) -> float:
    """Return the pair loss of counts ``(n_units,)``, in addition to the sum over units."""
    assert scores.pairs is not None
    at = np.concatenate([mix_entries(scores, i, float(count)) for i, count in enumerate(counts)])
    return float(at @ scores.pairs.astype(np.float64) @ at) / 2


def mix_entries(scores: Scores, unit: int, count: float) -> np.ndarray:
    """Return a count as a mixture of a unit's entries, ``(n_levels,)``, linear in the root.

    So between levels the pair term of two units is proportional to the product of the roots of
    their curves. It falls to 0 with the loss, and grows in proportion beyond the last level.
    """
    zeros = scores.layout[unit].zeros
    found = np.zeros(len(scores.counts[unit]))
    known = np.flatnonzero(scores.counts[unit] > zeros)
    if not len(known) or count <= zeros:
        return found
    counts, roots = scores.counts[unit][known], np.sqrt(scores.losses[unit][known])
    root = float(np.sqrt(scores.curves[unit](np.array([count]))[0]))
    b = int(np.searchsorted(counts, count))
    if b in (0, len(known)):
        end = min(b, len(known) - 1)
        found[known[end]] = root / roots[end] if roots[end] else count / counts[end]
        return found
    a = b - 1
    flat = roots[b] == roots[a]
    x, low, high = (count, counts[a], counts[b]) if flat else (root, roots[a], roots[b])
    share = float((x - low) / (high - low))
    found[known[a]], found[known[b]] = 1 - share, share
    return found


class _State:
    """The present levels, and the effect of raising or lowering each group.

    Row 0 of the arrays is for raising, row 1 for lowering.

    Attributes:
        levels: Present level of each group, ``(n_groups,)`` int64.
    """

    def __init__(
        self,
        knapsack: Knapsack,
        losses: Sequence[np.ndarray],
        scores: Scores,
        start: np.ndarray,
        shrink: float,
    ) -> None:
        assert scores.pairs is not None
        self.levels = start.copy()
        self._knapsack, self._table = knapsack, knapsack.table
        self._losses, self._scores = losses, scores
        self._pairs = scores.pairs.astype(np.float64) * shrink
        self._starts = np.cumsum([0, *map(len, scores.counts)])
        n = len(start)
        self._at = np.stack([self._mixture(g, int(k)) for g, k in enumerate(start)])
        self._field = self._pairs @ self._at.sum(axis=0)
        self._change = np.zeros((2, n, len(self._pairs)))
        self._gain, self._size = np.zeros((2, n)), np.zeros((2, n))
        self._cross = np.zeros((n, n))
        self._length = 0
        self._removed = knapsack.table.total(start)
        self._least_gain = 1e-9 * sum(float(loss.max()) for loss in losses)

    def look(self, length: int) -> None:
        """Compute the effects of all moves of a length."""
        self._length = length
        for group in range(len(self.levels)):
            self._look_at(group)
        self._cross = self._change[0] @ self._pairs @ self._change[1].T

    def improve(self) -> bool:
        """Make the best move if it lowers the loss, and return whether it was made."""
        gain = self._gain + self._change @ self._field
        total = gain[0][:, None] + gain[1] + self._cross
        after = self._removed + self._size[0][:, None] + self._size[1]
        total[(after < self._knapsack.least) | (after > self._knapsack.greatest)] = np.inf
        np.fill_diagonal(total, np.inf)
        up, down = (int(i) for i in np.unravel_index(int(total.argmin()), total.shape))
        if not total[up, down] < -self._least_gain:
            return False
        self._removed = int(after[up, down])
        for row, group in enumerate((up, down)):
            self._field += self._pairs @ self._change[row, group]
            self._at[group] += self._change[row, group]
            self.levels[group] += self._length * (1 - 2 * row)
        both = [up, down]
        for group in both:
            self._look_at(group)
        self._cross[both] = (self._change[0, both] @ self._pairs) @ self._change[1].T
        self._cross[:, both] = self._change[0] @ (self._pairs @ self._change[1, both].T)
        return True

    def _look_at(self, group: int) -> None:
        """Compute the effects of raising and of lowering one group alone."""
        now, losses, grid = (
            int(self.levels[group]),
            self._losses[group],
            self._table.saved[group],
        )
        for row, level in enumerate((now + self._length, now - self._length)):
            if not 0 <= level < len(losses):
                self._change[row, group], self._gain[row, group] = 0.0, np.inf
                continue
            change = self._mixture(group, level) - self._at[group]
            places = np.flatnonzero(change)
            among = change[places] @ self._pairs[np.ix_(places, places)] @ change[places]
            self._change[row, group] = change
            self._gain[row, group] = losses[level] - losses[now] + among / 2
            self._size[row, group] = grid[level] - grid[now]

    def _mixture(self, group: int, level: int) -> np.ndarray:
        """Return a level as a mixture of all entries, ``(n_entries,)``."""
        found = np.zeros(self._starts[-1])
        counts = self._table.rows[group][level]
        for unit, count in zip(self._table.groups[group], counts, strict=True):
            found[self._starts[unit] : self._starts[unit + 1]] = mix_entries(
                self._scores, unit, float(count)
            )
        return found
