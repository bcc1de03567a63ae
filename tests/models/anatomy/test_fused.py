from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from sparsity_search.allocators.besa.block_training import observe
from sparsity_search.models.anatomy.fused import find_rows_by_role
from sparsity_search.models.anatomy.linears import as_matrix, read_matrix, read_matrix_gradient
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.anatomy.views import RowsView
from sparsity_search.models.running.runner import BlockRunner
from sparsity_search.testing.evaluator import draw_random_tokens
from tests.helpers.families import ALL_FAMILIES

HIDDEN, HEADS, HEAD, GROUPS = 32, 4, 8, 2


def one_after_the_other(queries: int, keys: int) -> dict[str, Tensor]:
    rows = torch.arange(queries + 2 * keys).split([queries, keys, keys])
    return dict(zip("qkv", rows, strict=True))


def by_head() -> dict[str, Tensor]:
    rows = torch.arange(3 * HIDDEN).view(HEADS, 3, HEAD)
    return {name: rows[:, index].flatten() for index, name in enumerate("qkv")}


def by_group() -> dict[str, Tensor]:
    """Queries of a group, its key, its value."""
    rows = torch.arange((HEADS + 2 * GROUPS) * HEAD).view(GROUPS, HEADS // GROUPS + 2, HEAD)
    return {"q": rows[:, :-2].flatten(), "k": rows[:, -2].flatten(), "v": rows[:, -1].flatten()}


def in_four_parts() -> dict[str, Tensor]:
    """CodeGen was trained on four devices: queries, values and keys of each."""
    rows = torch.arange(3 * HIDDEN).view(4, 3, HEAD)
    return {name: rows[:, index].flatten() for index, name in enumerate("qvk")}


#: As the models' sources split them.
ATTENTIONS: dict[str, Mapping[str, Tensor]] = {
    "gpt2": one_after_the_other(HIDDEN, HIDDEN),
    "mpt": one_after_the_other(HIDDEN, HIDDEN),
    "phi3": one_after_the_other(HIDDEN, GROUPS * HEAD),
    "falcon": one_after_the_other(HIDDEN, HEAD),
    "falcon_new": by_group(),
    "gpt_neox": by_head(),
    "bloom": by_head(),
    "codegen": in_four_parts(),
}


def rows_of(view: RowsView) -> list[int]:
    return torch.arange(read_matrix(view.linear).shape[0])[view.rows].tolist()


def units(model: nn.Module, block: int) -> dict[str, RowsView]:
    views = PrunableModel(model).views.items()
    found = {n: v for n, v in views if isinstance(v, RowsView) and f".{block}." in n}
    return {name.partition("[")[2].removesuffix("]"): view for name, view in found.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ATTENTIONS)
def test_queries_keys_and_values(family: str, dtype: torch.dtype) -> None:
    model = ALL_FAMILIES[family]().to(dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for block in (0, 2):
        found = units(model, block)
        for role, wanted in ATTENTIONS[family].items():
            assert rows_of(found[role]) == wanted.tolist()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gates_and_ups(dtype: torch.dtype) -> None:
    found = units(ALL_FAMILIES["phi3"]().to(dtype), 1)
    assert rows_of(found["gate"]) == list(range(64))
    assert rows_of(found["up"]) == list(range(64, 128))


class Toy(nn.Module):
    """A feed-forward alone, whose fused rows are split as a test says."""

    def __init__(self, split: Any, act: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(2, 6)
        self.gate_up, self.down = nn.Linear(6, 16), nn.Linear(8, 6)
        self.split, self.act = split, act

    def forward(self, input_ids: Tensor, use_cache: bool) -> Tensor:
        gate, up = self.split(self.gate_up(self.embedding(input_ids)))
        made: Tensor = self.down(self.act(gate) * up)
        return made


SPLITS: dict[str, tuple[Any, list[int]]] = {
    "gate first": (lambda made: made.chunk(2, dim=-1), [*range(8)]),
    "up first": (lambda made: made.chunk(2, dim=-1)[::-1], [*range(8, 16)]),
    "alternating": (lambda made: (made[..., ::2], made[..., 1::2]), [*range(0, 16, 2)]),
    "alternating, up first": (lambda m: (m[..., 1::2], m[..., ::2]), [*range(1, 16, 2)]),
}


@pytest.mark.parametrize("name", SPLITS)
def test_every_order_of_gates_and_ups(name: str) -> None:
    split, gates = SPLITS[name]
    toy = Toy(split, nn.functional.silu)
    found = find_rows_by_role(toy, toy.gate_up, toy.down, "gate_up")
    assert found["gate"].tolist() == gates
    assert sorted([*gates, *found["up"].tolist()]) == list(range(16))


@pytest.mark.parametrize("act", [nn.Identity(), torch.zeros_like], ids=["bilinear", "silent"])
def test_what_is_not_understood_stays_one(act: Any) -> None:
    toy = Toy(SPLITS["gate first"][0], act)
    assert not find_rows_by_role(toy, toy.gate_up, toy.down, "gate_up")
    assert not find_rows_by_role(toy, toy.gate_up, toy.down, "qkv")


def test_linear_attention_stays_one() -> None:
    layout = PrunableModel(ALL_FAMILIES["qwen3_next"]()).layout
    assert [unit.role for unit in layout if "in_proj_qkvz" in unit.name] == ["qkv", "qkv"]


def test_all_rows_once() -> None:
    subject = PrunableModel(ALL_FAMILIES["falcon_new"]())
    layers = {id(p): p.numel() for p in subject.parameters()}
    assert subject.layout.n_weights == sum(layers.values())


@pytest.mark.parametrize("family", ["gpt2", "bloom"])  # transposed, and rows that lie apart
def test_a_view_of_rows(family: str) -> None:
    view = units(ALL_FAMILIES[family](), 1)["k"]
    linear, rows = view.linear, ATTENTIONS[family]["k"]
    before = read_matrix(linear).clone()
    assert torch.equal(view.read(), before[rows])
    change = torch.randn(view.read().shape, generator=torch.Generator().manual_seed(0))
    inputs = torch.randn(5, before.shape[1], generator=torch.Generator().manual_seed(1))
    dense = linear(inputs)
    assert_close(view.outputs(dense), dense[:, rows])
    (effect,) = view.effects(change)
    view.write(before[rows] + change)
    assert_close(linear(inputs) - dense, effect.outputs(inputs), rtol=1e-4, atol=1e-4)
    others = [row for row in range(len(before)) if row not in rows.tolist()]
    assert torch.equal(read_matrix(linear)[others], before[others])

    linear.weight.requires_grad_(True)
    linear(inputs).square().sum().backward()
    assert torch.equal(view.read_gradient(), read_matrix_gradient(linear)[rows])


@pytest.mark.parametrize("family", ["gpt2", "bloom"])
def test_masks_of_rows_in_a_block(family: str) -> None:
    subject = PrunableModel(ALL_FAMILIES[family]())
    runner = BlockRunner(subject, draw_random_tokens(1, 12))
    hidden = runner.embed()
    masked, _ = observe(subject, runner, 0, hidden)
    generator = torch.Generator().manual_seed(0)
    masks = {n: torch.rand(v.read().shape, generator=generator) for n, v in masked.views.items()}
    found = masked(hidden[0], masks).hidden
    with subject.preserved() as dense:
        for name, mask in masks.items():
            subject.views[name].write(dense[name] * mask)
        (wanted,) = runner.run(0, hidden)
    assert_close(found, wanted.hidden)
    name = next(name for name in masks if name.endswith("[v]"))
    masks[name].requires_grad_(True)
    masked(hidden[0], masks).hidden.sum().backward()
    grad = masks[name].grad
    assert grad is not None
    assert bool(grad.any())


def test_excluded_rows_leave_the_others() -> None:
    model = ALL_FAMILIES["gpt2"]()
    subject = PrunableModel(model, exclude=r"c_attn\[q\]")
    assert len(subject.excluded) == 3
    view = subject.views["transformer.h.0.attn.c_attn[k]"]
    assert isinstance(view, RowsView)
    whole = view.within(torch.zeros(1), torch.ones_like(view.read()))
    assert as_matrix(view.linear, whole).shape == view.linear.weight.shape
