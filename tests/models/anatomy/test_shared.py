from __future__ import annotations

import torch
from torch import Tensor

from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.anatomy.shared import find_owners
from sparsity_search.profiles.budget import Budget
from sparsity_search.pruners.wanda import WandaPruner
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.testing.evaluator import draw_random_tokens
from sparsity_search.testing.models import tiny_llama
from tests.helpers.families import make_family

SHARED = "shared_transformer.feed_forward"


def test_shared_weights_are_units_once() -> None:
    model = make_family("zamba2")
    subject = PrunableModel(model)
    names = [unit.name for unit in subject.layout if SHARED in unit.name]
    first, second = (f"model.layers.{block}.{SHARED}." for block in (1, 3))
    assert f"{first}down_proj" in names
    assert f"{second}down_proj" not in names
    # both blocks hold both adapters, and each calls one
    assert [name for name in names if "adapter" in name] == [
        f"{place}gate_up_proj_adapter_list.{number}.{part}"
        for number, place in enumerate([first, second])
        for part in (0, 1)
    ]
    assert subject.layout.n_weights == sum(p.numel() for p in subject.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_shared_weights_are_pruned_once() -> None:
    model = make_family("zamba2")
    subject = PrunableModel(model)
    profile = Budget(0.5).uniform(subject.layout)
    prune_sequentially(subject, profile, WandaPruner(), draw_random_tokens(5, 16))
    subject.verify(profile)
    zeros = sum(int((parameter == 0).sum()) for parameter in subject.parameters())
    assert zeros == profile.n_removed == round(0.5 * subject.layout.n_weights)


def test_blocks_with_weights_of_their_own_are_not_run() -> None:
    model = tiny_llama()

    def fails(*_: Tensor) -> None:
        raise AssertionError("the model is run")

    model.register_forward_pre_hook(fails)
    assert find_owners(model, model.model.layers) == {}


def test_a_module_in_two_blocks() -> None:
    model = tiny_llama()
    layers = model.model.layers
    layers[2].mlp = layers[1].mlp
    found = find_owners(model, layers)
    assert found == {id(p): 1 for p in layers[1].mlp.parameters()}
    assert torch.isfinite(model(draw_random_tokens(1, 8)).logits).all()
