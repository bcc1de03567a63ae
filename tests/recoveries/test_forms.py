"""Forms of trainable weights, and what is written back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparsity_search.errors import NumericalError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.recoveries.bases.choosing import choose
from sparsity_search.recoveries.bases.forms import Kept, MaskedLowRank, Scaled
from sparsity_search.recoveries.bases.trainable import fill_pattern, list_slots, training
from sparsity_search.testing.models import tiny_llama


@given(st.integers(0, 2**32), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_the_pattern_is_filled_exactly(seed: int, dtype: torch.dtype) -> None:
    source = torch.Generator().manual_seed(seed)
    scale = 10.0 ** torch.randint(-60, 4, (5, 7), generator=source).float()
    weight = torch.randn(5, 7, generator=source) * scale
    kept = torch.rand(5, 7, generator=source) < 0.5
    found = fill_pattern(weight, kept, dtype)
    assert found.dtype == dtype
    assert torch.equal(found != 0, kept)
    normal = kept & (weight.abs() > torch.finfo(dtype).tiny)
    assert torch.equal(found[normal], weight.to(dtype)[normal])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_numbers_that_do_not_fit_are_refused(value: float) -> None:
    with pytest.raises(NumericalError, match=r"leaves the range of torch\.float16"):
        fill_pattern(torch.tensor([[value]]), None, torch.float16)


def test_kept_entries_alone_have_gradients() -> None:
    weight, kept = torch.randn(3, 4, requires_grad=True), torch.rand(3, 4) < 0.5
    Kept(kept)(weight).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, kept.float())


@pytest.mark.parametrize("shape", [(6, 8), (3, 6, 8)])
def test_a_low_rank_change_begins_at_nothing_and_is_masked(shape: tuple[int, ...]) -> None:
    weight, kept = torch.randn(shape), torch.rand(shape) < 0.5
    form = MaskedLowRank(kept, 2, 3.0, torch.Generator().manual_seed(0))
    assert torch.equal(form(weight), weight)
    nn.init.normal_(form.b)
    change = form(weight) - weight
    expected = 3.0 * torch.einsum("...ir,...rj->...ij", form.b.double(), form.a.double())
    torch.testing.assert_close(change.double(), expected * kept, rtol=1e-4, atol=1e-4)


def test_factors_of_groups() -> None:
    weight, groups = torch.randn(3, 4), torch.tensor([0, 1, 1, 0])
    form = Scaled(groups, 1)
    with torch.no_grad():
        form.factors.copy_(torch.tensor([2.0, 5.0]))
    assert torch.equal(form(weight), weight * torch.tensor([2.0, 5.0, 5.0, 2.0]))
    across = Scaled(groups[:3], 0)
    with torch.no_grad():
        across.factors.copy_(torch.tensor([2.0, 5.0]))
    assert torch.equal(across(weight), weight * torch.tensor([[2.0], [5.0], [5.0]]))


def test_a_module_holds_what_was_trained() -> None:
    layer = nn.Linear(4, 3).requires_grad_(False).bfloat16()
    kept = torch.rand(3, 4) < 0.5
    first, others = layer.weight.clone(), layer.bias.clone()
    with training(layer, {"weight": kept}, [], lambda _, mask: Kept(mask)) as parameters:
        (trained,) = parameters
        only = trained.parameter
        assert only.dtype == torch.float32
        assert trained.size == pytest.approx(
            float(first[first != 0].float().square().mean().sqrt())
        )
        with torch.no_grad():
            only += 1
    assert type(layer) is nn.Linear
    assert layer.weight is only
    assert not layer.weight.requires_grad
    assert torch.equal(layer.weight, (first.float() + 1) * kept)
    assert torch.equal(layer.bias, others)


def test_what_is_trained_of_a_model() -> None:
    subject = PrunableModel(tiny_llama(), exclude="q_proj")
    found = choose(subject, subject.model)
    names = {slot.name for slot in list_slots(subject.model)}
    assert set(found.masks) == {f"{unit.name}.weight" for unit in subject.layout}
    norms = {name for name in names if "layernorm" in name}
    assert set(found.vectors) == norms  # not the last one, which belongs to no block
    assert not any("q_proj" in name or "embed" in name for name in found.masks)


def test_weights_that_blocks_share_are_left_alone() -> None:
    model = tiny_llama()
    model.model.layers[1].mlp = model.model.layers[0].mlp
    found = choose(PrunableModel(model), model)
    trained = {name.partition("layers.")[2].rpartition(".weight")[0] for name in found.masks}
    assert {name for name in trained if "mlp" in name} == {
        f"2.mlp.{part}_proj" for part in ("gate", "up", "down")
    }
    assert {"0.self_attn.q_proj", "1.self_attn.q_proj"} <= trained
