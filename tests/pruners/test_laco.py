from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsity_search.errors import ConfigError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.surgery.merge import merge_removed
from sparsity_search.profiles.profile import from_counts
from sparsity_search.pruners.drop import DropPruner
from sparsity_search.pruners.laco import LaCoPruner
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.supernet.build import SupernetDesign
from sparsity_search.testing.evaluator import copy_weights
from sparsity_search.testing.models import tiny_llama


@pytest.mark.parametrize("units", ["blocks", "sublayers"])
def test_merges_then_drops(units: str, tiny_tokens: Tensor) -> None:
    found, expected = tiny_llama(layers=5), tiny_llama(layers=5)
    subject = PrunableModel(found, units=units)
    removed = [int(unit.block in (1, 2)) for unit in subject.layout]
    profile = from_counts(subject.layout, removed)
    prune_sequentially(subject, profile, LaCoPruner(), tiny_tokens)
    other = PrunableModel(expected, units=units)
    merge_removed(other, profile)
    prune_sequentially(other, profile, DropPruner(), tiny_tokens)
    wanted, dense = copy_weights(expected), copy_weights(tiny_llama(layers=5))
    assert all(torch.equal(w, wanted[name]) for name, w in copy_weights(found).items())
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(wanted[name], dense[name])


def test_a_supernet_cannot_hold_it() -> None:
    subject = PrunableModel(tiny_llama(), units="blocks")
    with pytest.raises(ConfigError, match="search with drop"):
        SupernetDesign(pruner=LaCoPruner(), tables=[(0, 1)] * 3, centre=subject.zeros())
