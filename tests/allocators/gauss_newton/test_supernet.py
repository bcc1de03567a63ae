"""The supernet of a descent: what is in it, and where it is kept."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

import sparsity_search.allocators.gauss_newton as module
from sparsity_search.allocators.gauss_newton.descent import Descent
from sparsity_search.allocators.gauss_newton.grid import Grid
from sparsity_search.errors import ConfigError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.supernet.build import build_supernet
from sparsity_search.testing.models import tiny_llama, tiny_mixtral

from .test_gauss_newton import QUICK, create


def test_only_what_all_steps_can_reach_is_pruned(
    tiny_tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = []
    monkeypatch.setattr(
        module, "build_supernet", lambda *given: plans.append(given[2]) or build_supernet(*given)
    )
    tight, target = create(**{**QUICK, "reach": 0.1}), Budget(0.5)
    subject = PrunableModel(tiny_llama(layers=2))
    found = tight.allocate(subject, tiny_tokens, target, Bounds.of(subject.layout))
    (plan,) = plans
    assert tight.supernet == (plan.pruner, max(map(len, plan.tables)))
    for unit, table in zip(subject.layout, plan.tables, strict=True):
        assert [count / unit.count for count in table] == pytest.approx(
            np.arange(0.3, 0.71, 0.05), abs=2 / unit.count
        )
    monkeypatch.setattr(Grid, "within", lambda self, _: self)
    assert tight.allocate(subject, tiny_tokens, target, Bounds.of(subject.layout)) == found


def test_mixtures_are_refused_before_a_supernet_is_built(
    tiny_tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "build_supernet", lambda *_: pytest.fail("a supernet was built"))
    subject = PrunableModel(tiny_mixtral())
    with pytest.raises(ConfigError, match="leave experts out"):
        create(**QUICK).allocate(subject, tiny_tokens, Budget(0.5), Bounds.of(subject.layout))


def test_no_unit_leaves_the_span(tiny_tokens: Tensor) -> None:
    subject, target = PrunableModel(tiny_llama(layers=2)), Budget(0.5)
    settings = {**QUICK, "reach": 0.2, "steps": 4}
    far, near = (
        create(**settings, **span).allocate(
            subject, tiny_tokens, target, Bounds.of(subject.layout)
        )
        for span in ({}, {"span": 0.1})
    )
    moved = [np.abs(np.array(found.sparsities) - 0.5).max() for found in (far, near)]
    assert moved[0] > 0.15
    assert 0 < moved[1] <= 0.1 + 5e-3  # counts are whole numbers
    assert create(**settings, span=0.1).supernet[1] == 5


@pytest.mark.parametrize("pruner", ["sparsegpt", "wanda"])
def test_only_copies_of_weights_wait_on_disk_and_only_meanwhile(
    pruner: str, tiny_tokens: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    files: list[Path] = []

    def run(self: Descent, *given: Any) -> Any:
        files.extend(tmp_path.rglob("*.safetensors"))
        return descend(self, *given)

    descend = Descent.run
    monkeypatch.setattr(Descent, "run", run)
    subject = PrunableModel(tiny_llama(layers=2))
    method = create(**QUICK, pruner=pruner)
    method.allocate(subject, tiny_tokens, Budget(0.5), Bounds.of(subject.layout))
    assert len(files) == (2 if pruner == "sparsegpt" else 0)
    assert not [*tmp_path.iterdir()]
