"""Every family, pruned, saved and loaded again: nothing but the pruned weights changes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.io.loading import load_model
from sparsity_search.models.io.saving import save_checkpoint
from sparsity_search.profiles.profile import from_counts
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.registry import PRUNERS
from sparsity_search.testing.evaluator import draw_random_tokens
from sparsity_search.testing.families import FAMILIES
from tests.helpers.checkpoints import compute_logits, read_config, read_tensors, save_family


def is_masked(pruned: Tensor, dense: Tensor) -> bool:
    return bool(((pruned == dense) | (pruned == 0)).all())


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_else_changes(name: str, tmp_path: Path) -> None:
    source, out = save_family(name, tmp_path / "dense", torch.bfloat16), tmp_path / "out"
    loaded = load_model(str(source), device="cpu")
    subject = PrunableModel(loaded.model, saved_as=loaded.saved_as)
    counts = [unit.count // 2 if unit.block == 0 else 0 for unit in subject.layout]
    profile = from_counts(subject.layout, counts)
    prune_sequentially(subject, profile, PRUNERS.create("magnitude"), draw_random_tokens(1, 8))
    save_checkpoint(loaded.model, loaded.tokenizer, out, base=loaded)

    before, after = read_tensors(source), read_tensors(out)
    assert after.keys() == before.keys()
    assert read_config(out) == read_config(source)
    assert all(after[name].dtype == tensor.dtype for name, tensor in before.items())
    changed = [name for name, tensor in before.items() if not torch.equal(after[name], tensor)]
    assert all(
        re.search(r"\.0\.", name) and is_masked(after[name], before[name]) for name in changed
    )
    zeros = sum(int((after[name] == 0).sum() - (before[name] == 0).sum()) for name in changed)
    assert zeros == profile.n_removed > 0

    model_class = getattr(transformers, FAMILIES[name].architecture)
    plain, told = model_class.from_pretrained(
        out, dtype=loaded.model.dtype, output_loading_info=True
    )
    assert not any(told.values())
    assert torch.equal(compute_logits(plain), compute_logits(loaded.model))
