"""Supernets of a model whose blocks rest in a file are those of one in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.io.identity import compute_weights_digest
from sparsity_search.models.io.offload import Offload
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.registry import PRUNERS
from sparsity_search.supernet.build import SupernetDesign, build_supernet
from sparsity_search.supernet.disk import SupernetFolder
from sparsity_search.testing.evaluator import copy_weights
from sparsity_search.testing.models import tiny_llama


@pytest.mark.parametrize("propagate", ["centre", "expectation"])
@pytest.mark.parametrize("pruner", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("on_disk", [False, True])
def test_an_offloaded_supernet_is_the_same(
    tiny_subject: PrunableModel,
    tiny_tokens: Tensor,
    plan_of: Callable[..., SupernetDesign],
    profiles: list[SparsityProfile],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pruner: str,
    propagate: str,
    on_disk: bool,
) -> None:
    monkeypatch.setattr(Offload, "_send", lambda _, tensor: tensor.clone())
    model = tiny_llama()
    digest = compute_weights_digest(model)
    Offload(model, torch.device("cpu"))
    subject, found = PrunableModel(model), []
    plan = plan_of(PRUNERS.create(pruner), propagate=propagate)
    folder = SupernetFolder(tmp_path / "s", {}) if on_disk else None
    for supernet in (
        build_supernet(tiny_subject, tiny_tokens, plan),
        build_supernet(subject, tiny_tokens, plan, folder),
    ):
        with supernet.resident() as switch:
            for profile in profiles:
                switch.to(profile)
                found.append(copy_weights(supernet.subject.model))
    for one, other in zip(found[: len(profiles)], found[len(profiles) :], strict=True):
        assert all(torch.equal(weight, other[name]) for name, weight in one.items())
    assert compute_weights_digest(model) == digest
