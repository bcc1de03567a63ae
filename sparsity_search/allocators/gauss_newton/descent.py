"""Steps of a profile on one supernet, each to the least predicted divergence in a region."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsity_search.allocators.gauss_newton.grid import Grid
from sparsity_search.models.running.divergence_expansion import DivergenceExpansion
from sparsity_search.solvers.decisions import Knapsack
from sparsity_search.solvers.greedy import trim_steps
from sparsity_search.solvers.lagrangian import solve_lagrangian
from sparsity_search.spaces.hints import Hint
from sparsity_search.supernet.gradients import predict_changes
from sparsity_search.supernet.switch import Supernet, Switch

#: Levels of a unit at which the divergence is predicted; between them it is interpolated.
_MEASURED = 5


@dataclass(frozen=True, eq=False)
class Descent:
    """The steps on one supernet.

    Attributes:
        supernet: Supernet that holds every level.
        divergence: Divergence to minimise.
        grid: Possible counts of the units.
        n_removed: Fewest weights to remove.
    """

    supernet: Supernet
    divergence: DivergenceExpansion
    grid: Grid
    n_removed: int

    def run(self, steps: int, reach: np.ndarray) -> tuple[np.ndarray, list[float]]:
        """Return the best levels, and the divergence at the start and after each step.

        Args:
            steps: Greatest number of steps.
            reach: Most levels that each unit may move in the first step, ``(n_units,)``.
        """
        levels = self.grid.start
        with self.supernet.resident() as switch:
            switch.to(self.grid.profile(levels))
            best, changes = self._predict(switch, levels, reach)
            values = [best]
            for step in range(1, steps + 1):
                proposed = self._solve(levels, changes, reach)
                if (proposed == levels).all():
                    break
                switch.to(self.grid.profile(proposed))
                values.append(self.divergence.value())  # costs less than a prediction
                if values[-1] < best:
                    best, levels = values[-1], proposed
                    if step < steps:
                        _, changes = self._predict(switch, levels, reach)
                else:  # half of the actual move, or the same step would be proposed again
                    reach = np.minimum(reach, np.abs(proposed - levels).max()) // 2
        return levels, values

    def _predict(
        self, switch: Switch, levels: np.ndarray, reach: np.ndarray
    ) -> tuple[float, Hint]:
        """Return the divergence at levels, and its predicted changes within reach."""
        steps = np.linspace(-reach, reach, _MEASURED, axis=1)
        around = levels[:, None] + np.rint(steps).astype(np.int64)
        measured = list(map(np.unique, np.clip(around, 0, self.grid.table.top[:, None])))
        return predict_changes(self.grid.states, levels, measured, switch, self.divergence)

    def _solve(self, levels: np.ndarray, changes: Hint, reach: np.ndarray) -> np.ndarray:
        """Return the levels of the least predicted divergence within reach."""
        table, place = self.grid.table.around(levels, reach)
        first = levels - place
        losses = [
            each[low : low + len(saved)]
            for each, low, saved in zip(
                changes.losses, first - changes.lower, table.saved, strict=True
            )
        ]
        _, most = table.range
        knapsack = Knapsack(table, least=self.n_removed, greatest=max(self.n_removed, most))
        found = solve_lagrangian(knapsack, losses).levels
        if self.grid.final:
            found = trim_steps(knapsack, losses, found)
        return np.asarray(first + found)
