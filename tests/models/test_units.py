from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from sparsity_search.errors import ModelError, UnknownNameError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.anatomy.views import StructuredView
from sparsity_search.registry import UNITS
from sparsity_search.testing.evaluator import copy_weights
from sparsity_search.testing.models import tiny_llama
from tests.helpers.families import ALL_FAMILIES, FAMILIES

STRUCTURED = [name for name in UNITS.names() if name not in ("weights", "experts")]
#: (count, weights each) of attention and feed-forward in `tiny_llama`: hidden 32, 4 heads of 8 in
#: 2 key-value groups, 64 channels.
SIZES = {
    "width": [(2, 32 * (2 * 16 + 2 * 8)), (64, 3 * 32)],
    "heads": [(2, 32 * 2 * 16), (64, 3 * 32)],
    "sublayers": [(1, 32 * (2 * 32 + 2 * 16)), (1, 3 * 32 * 64)],
    "blocks": [(1, 32 * (2 * 32 + 2 * 16) + 3 * 32 * 64)],
}


def view_of(subject: PrunableModel, role: str, block: int = 1) -> StructuredView:
    (unit,) = [u for u in subject.units_of(block) if u.role == role]
    view = subject.views[unit.name]
    assert isinstance(view, StructuredView)
    return view


@pytest.mark.parametrize("kind", STRUCTURED)
def test_sizes(kind: str) -> None:
    layout = PrunableModel(tiny_llama(), units=kind).layout
    assert [(u.count, u.cost) for u in layout if u.block == 1] == SIZES[kind]
    assert len(layout) == 3 * len(SIZES[kind])


def test_names_and_roles() -> None:
    found = [(u.name, u.role) for u in PrunableModel(tiny_llama(), units="width").units_of(0)]
    assert found == [
        ("model.layers.0.self_attn", "attention"),
        ("model.layers.0.mlp", "feed_forward"),
    ]
    (block,) = PrunableModel(tiny_llama(), units="blocks").units_of(2)
    assert (block.name, block.role) == ("model.layers.2", "block")


@pytest.mark.parametrize("kind", STRUCTURED)
def test_read_and_write(kind: str) -> None:
    subject = PrunableModel(tiny_llama(), units=kind)
    before = copy_weights(subject.model)
    for unit in subject.layout:
        view = subject.views[unit.name]
        weight = view.read()
        assert weight.shape == (32, unit.count * unit.cost // 32 + view.structures.biases)
        view.write(weight * 2)
        assert_close(view.read(), weight * 2)
        view.write(weight)
    for name, weight in copy_weights(subject.model).items():
        assert torch.equal(weight, before[name])


@pytest.mark.parametrize("kind", ["width", "heads"])
@pytest.mark.parametrize("role", ["attention", "feed_forward"])
def test_inputs_are_in_the_order_of_the_consumer(kind: str, role: str) -> None:
    view = view_of(PrunableModel(tiny_llama(), units=kind), role)
    consumer = view.module
    assert isinstance(consumer, nn.Linear)
    inputs = torch.randn(5, consumer.in_features)
    weight = view.structures.consumer(view.read())
    assert_close(view.inputs(inputs) @ weight.T, consumer(inputs))


@pytest.mark.parametrize("kind", STRUCTURED)
def test_zeros_are_empty_structures(kind: str) -> None:
    subject = PrunableModel(tiny_llama(), units=kind)
    for unit in subject.layout:
        view = subject.views[unit.name]
        weight = view.read()
        assert view.n_zeros() == 0
        view.structures.bodies(weight)[:, -1] = 0
        view.write(weight)
        assert view.n_zeros() == 1
    assert subject.zeros().removed == (1,) * len(subject.layout)


def test_a_key_value_group_is_its_own_keys_and_queries(tiny_tokens: Tensor) -> None:
    """Queries 2 and 3 read key-value head 1: without it they say nothing, the others all."""
    subject = PrunableModel(tiny_llama(), units="width")
    view = view_of(subject, "attention")
    weight = view.read()
    view.structures.bodies(weight)[:, 1] = 0
    view.write(weight)
    attention = subject.blocks[1].self_attn
    for name, rows in (("q_proj", 16), ("k_proj", 8), ("v_proj", 8)):
        made = getattr(attention, name).weight
        assert (made[rows:] == 0).all()
        assert (made[:rows] != 0).all()
    assert (attention.o_proj.weight[:, 16:] == 0).all()
    assert (attention.o_proj.weight[:, :16] != 0).all()


def test_query_heads_leave_groups_equal() -> None:
    subject = PrunableModel(tiny_llama(), units="heads")
    view = view_of(subject, "attention")
    weight = view.read()
    view.structures.bodies(weight)[:, 0] = 0  # the first query head of each of the two groups
    view.write(weight)
    attention = subject.blocks[1].self_attn
    gone = (attention.q_proj.weight == 0).all(dim=1).view(4, 8).all(dim=1)
    assert gone.tolist() == [True, False, True, False]
    assert torch.equal(gone, (attention.o_proj.weight == 0).all(dim=0).view(4, 8).all(dim=1))
    assert (attention.k_proj.weight != 0).all()


def test_heads_without_groups_are_whole() -> None:
    model = tiny_llama(num_key_value_heads=4)
    layout = PrunableModel(model, units="heads").layout
    assert (layout[0].count, layout[0].cost) == (4, 4 * 8 * 32)


@pytest.mark.parametrize("kind", ["sublayers", "blocks"])
def test_an_empty_unit_is_the_identity(kind: str, tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama(), units=kind)
    for unit in subject.units_of(1):
        subject.views[unit.name].write(subject.views[unit.name].read() * 0)
    shorter = tiny_llama(layers=2)
    shorter.model.layers[0].load_state_dict(subject.blocks[0].state_dict())
    shorter.model.layers[1].load_state_dict(subject.blocks[2].state_dict())
    for name in ("embed_tokens", "norm"):
        getattr(shorter.model, name).load_state_dict(
            getattr(subject.model.model, name).state_dict()
        )
    shorter.lm_head.load_state_dict(subject.model.lm_head.state_dict())
    with torch.inference_mode():
        assert_close(
            subject.model(input_ids=tiny_tokens).logits, shorter(input_ids=tiny_tokens).logits
        )


@pytest.mark.parametrize("dense_bias", [False, True])
def test_biases_come_and_go(dense_bias: bool, tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama(attention_bias=dense_bias), units="width")
    view, before = view_of(subject, "attention"), copy_weights(subject.model)
    consumer = view.module
    with subject.preserved():
        weight = view.read()
        assert_close(weight[:, -1], torch.zeros(32))
        weight[:, -1] = torch.arange(32.0)
        view.write(weight)
        assert torch.equal(consumer.bias, torch.arange(32.0))
        assert torch.equal(view.read(), weight)
    assert (consumer.bias is not None) == dense_bias
    after = copy_weights(subject.model)
    assert after.keys() == before.keys()
    assert all(torch.equal(weight, before[name]) for name, weight in after.items())


def test_structures_that_nothing_reads() -> None:
    subject = PrunableModel(tiny_llama(), units="width")
    view = view_of(subject, "feed_forward")
    bodies = view.structures.bodies(weight := view.read())
    bodies[:, 3, : view.structures.inner] = 0  # made, but not read
    bodies[:, 5, view.structures.inner :] = 0  # read, but not made
    view.write(weight)
    assert view.unread().nonzero().flatten().tolist() == [3]


def test_unknown_kind() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown unit kind 'widht'.*width"):
        PrunableModel(tiny_llama(), units="widht")


def test_blocks_that_are_not_understood() -> None:
    with pytest.raises(ModelError, match="has no recognised attention or feed-forward"):
        PrunableModel(ALL_FAMILIES["mamba"](), units="width")


@pytest.mark.parametrize("kind", ["width", "heads"])
def test_fused_projections_go_only_as_a_whole(kind: str) -> None:
    layout = PrunableModel(FAMILIES["gpt_neox"](), units=kind).layout
    assert [(unit.role, unit.count) for unit in layout] == [("feed_forward", 64)] * 3
    with pytest.raises(ModelError, match="are not independent"):
        PrunableModel(ALL_FAMILIES["phi3"](), units=kind)
    whole = PrunableModel(ALL_FAMILIES["phi3"](), units="sublayers").layout
    sizes = {"attention": 32 * (32 + 64), "feed_forward": 3 * 32 * 64}
    assert [(unit.role, unit.size) for unit in whole] == [*sizes.items()] * 3


@pytest.mark.parametrize("kind", ["width", "heads"])
def test_heads_that_one_norm_ties_together(kind: str) -> None:
    """OLMo 2 norms all queries as one vector, Qwen3 each head apart."""
    roles = {
        family: {unit.role for unit in PrunableModel(ALL_FAMILIES[family](), units=kind).layout}
        for family in ("olmo2", "qwen3")
    }
    assert roles == {"olmo2": {"feed_forward"}, "qwen3": {"attention", "feed_forward"}}


@pytest.mark.parametrize("kind", ["width", "heads"])
def test_heads_of_an_attention_with_a_gate(kind: str) -> None:
    """The queries of Qwen3-Next hold a gate too: 16 rows a head, where the values have 8."""
    subject = PrunableModel(ALL_FAMILIES["qwen3_next"](), units=kind)
    view = view_of(subject, "attention")
    weight = view.read()
    view.structures.bodies(weight)[:, 0] = 0
    view.write(weight)
    attention = subject.blocks[1].self_attn
    gone = [0, 1] if kind == "width" else [0, 2]
    for name, size, dim in (("q_proj", 16, 1), ("o_proj", 8, 0)):
        empty = (getattr(attention, name).weight == 0).all(dim=dim).view(4, size).all(dim=1)
        assert empty.nonzero().flatten().tolist() == gone


@pytest.mark.parametrize("family", ["mixtral", "jamba", "falcon_h1", "qwen3_next"])
def test_blocks_that_are_more_than_their_sublayers(family: str) -> None:
    with pytest.raises(ModelError, match="is more than attention and feed-forward: it has "):
        PrunableModel(ALL_FAMILIES[family](), units="blocks")


@pytest.mark.parametrize("kind", STRUCTURED)
def test_gemma(kind: str, tiny_tokens: Tensor) -> None:
    subject = PrunableModel(FAMILIES["gemma3"](), units=kind)
    assert len(subject.layout) == 3 * len(SIZES[kind])
