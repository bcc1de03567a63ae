from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from sparsity_search.evidence.variants import Variants
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Budget
from sparsity_search.pruners.wanda import WandaPruner
from sparsity_search.spaces.files import SpaceFile
from sparsity_search.spaces.levels import SearchSpace
from sparsity_search.supernet.build import SupernetDesign
from sparsity_search.utils.random import create_generator


@dataclass(frozen=True, kw_only=True)
class Counting(WandaPruner):
    """Wanda that notes how many weights it pruned."""

    calls: list[Sequence[int]] = field(default_factory=list, compare=False)

    def prune(self, weight: Any, inputs: Any, counts: Sequence[int], *, seed: int) -> Variants:
        self.calls.append(counts)
        return super().prune(weight, inputs, counts, seed=seed)


@pytest.fixture
def space(tiny_subject: PrunableModel) -> SearchSpace:
    file = SpaceFile(version=1, description="x", gene=["name"], step=0.1, reach=2)
    return file.build(tiny_subject.layout, Budget(0.6), {})


@pytest.fixture
def plan_of(space: SearchSpace) -> Callable[..., SupernetDesign]:
    def make(pruner: Pruner | None = None, **changes: Any) -> SupernetDesign:
        tables = space.tables()
        return SupernetDesign(
            pruner=pruner or WandaPruner(), tables=tables, centre=space.base, **changes
        )

    return make


@pytest.fixture
def profiles(space: SearchSpace) -> list[Any]:
    """Some profiles of the space, far apart; the first is the centre."""
    rng = create_generator(0, "profiles")
    return [space.base, *(space.profile(space.sample(rng, 2.0)) for _ in range(3))]
