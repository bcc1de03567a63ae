"""An allocator from outside the package, as a stranger would write it, keeps the contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsity_search.interfaces.allocator import Allocator
from sparsity_search.registry import ALLOCATORS
from sparsity_search.testing.allocator import AllocatorContract

MODULE = '''
from dataclasses import dataclass

import numpy as np

from sparsity_search.evidence.statistics import Statistic
from sparsity_search.interfaces.allocator import AllocationProblem, Allocator
from sparsity_search.models.running.walk import walk


@dataclass(frozen=True, kw_only=True)
class ActivationNormAllocator(Allocator):
    """Layers that read larger activations stay denser."""

    strength: float = 0.05

    def propose(self, problem: AllocationProblem) -> np.ndarray:
        size = {}
        for visit in walk(problem.subject, problem.tokens, Statistic.NORM, rewritten=False):
            for name, inputs in visit.statistics.items():
                size[name] = float(inputs.norms().mean())
        sizes = np.array([size[unit.name] for unit in problem.layout])
        return problem.target - self.strength * np.log1p(sizes)
'''


@pytest.fixture
def allocator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Allocator:
    (tmp_path / "outside_allocator.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    found: Allocator = ALLOCATORS.create("outside_allocator:ActivationNormAllocator")
    return found


def test_it_is_short() -> None:
    assert len([line for line in MODULE.splitlines() if line]) <= 25


class TestOutside(AllocatorContract):
    pass
