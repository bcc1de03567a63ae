from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from sparsity_search.allocators.uniform import UniformAllocator
from sparsity_search.config.schema import RunConfig
from sparsity_search.interfaces.allocator import Allocation, AllocationProblem, Allocator
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.testing.models import save_tiny_model
from sparsity_search.workflow import allocate as workflow


def test_an_allocation_is_the_profile_alone_by_default(tiny_subject: PrunableModel) -> None:
    budget, bounds = Budget(0.37), Bounds.of(tiny_subject.layout)
    nothing = torch.empty(0, 0, dtype=torch.int64)
    found = UniformAllocator().detailed(tiny_subject, nothing, budget, bounds)
    assert found.profile == UniformAllocator().allocate(tiny_subject, nothing, budget, bounds)
    assert (dict(found.arrays), found.notes) == ({}, ())


@dataclass(frozen=True, kw_only=True)
class Rows(Allocator):
    """Uniform, with a number for each row of two units."""

    needs_text = False
    arrays: bool = True

    def propose(self, problem: AllocationProblem) -> Allocation:
        names = [unit.name for unit in problem.layout][:2]
        rates = np.arange(64, dtype=np.float32).reshape(32, 2)
        found = {name: rates[:, i] for i, name in enumerate(names)}  # columns: not contiguous
        return Allocation(problem.uniform, found if self.arrays else {}, ("one thing", "another"))


@pytest.mark.parametrize("arrays", [True, False])
def test_arrays_and_notes_lie_beside_the_profile(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arrays: bool
) -> None:
    model = save_tiny_model(tmp_path / "tiny", layers=1)
    config = RunConfig.model_validate({"model": {"name": str(model)}, "budget": {"sparsity": 0.3}})
    monkeypatch.setattr(workflow, "build_allocator", lambda *_: Rows(arrays=arrays))
    out = tmp_path / "made" / "profile.json"
    found = workflow.allocate(config, "rows", out)
    stored = json.loads(out.read_text())
    assert stored["notes"] == ["one thing", "another"]
    assert SparsityProfile.from_json(found.profile.layout, stored) == found.profile
    beside = out.with_suffix(".safetensors")
    assert beside.exists() == arrays
    assert sorted(path.name for path in out.parent.iterdir()) == (
        ["profile.json", "profile.safetensors"] if arrays else ["profile.json"]
    )
    if arrays:
        first, second = (load_file(beside)[name] for name in found.arrays)
        assert first.tolist() == list(range(0, 64, 2))
        assert second.tolist() == list(range(1, 64, 2))
