"""Transposed layers: everything must be as with an ``nn.Linear`` of the same matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers.pytorch_utils import Conv1D

from sparsity_search.evidence.statistics import Statistic
from sparsity_search.models.anatomy.linears import (
    LinearCallMode,
    as_matrix,
    find_linears,
    is_linear,
    read_matrix,
    read_matrix_gradient,
)
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.anatomy.views import LinearView
from sparsity_search.models.running.gradients import compute_weight_gradients
from sparsity_search.models.running.walk import walk
from sparsity_search.profiles.budget import Budget
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.registry import ALLOCATORS, PRUNERS
from sparsity_search.spaces.files import bounds_of
from sparsity_search.testing.evaluator import draw_random_tokens
from tests.helpers.families import FAMILIES
from tests.helpers.names import OF_WEIGHTS

PATTERNS = [("wanda", "2:4"), ("sparsegpt", "4:8")]
NAMES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


def twin(model: nn.Module) -> nn.Module:
    """Return a GPT-2 with ``nn.Linear`` in place of each ``Conv1D``, and equal matrices."""
    other = FAMILIES["gpt2"]()
    for (name, layer), made in zip(model.named_modules(), [*other.modules()], strict=True):
        if isinstance(layer, Conv1D):
            linear = nn.Linear(layer.nx, layer.nf).requires_grad_(False)
            linear.weight.copy_(layer.weight.T)
            linear.bias.copy_(layer.bias)
            parent, _, last = name.rpartition(".")
            setattr(other.get_submodule(parent), last, linear)
        elif made.__dict__["_parameters"]:
            made.load_state_dict(layer.state_dict())
    return other


class Multiplied(nn.Module):
    """Uses a layer's weight itself, as Mamba does."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 5, bias=bias)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer.weight @ inputs.mT


@pytest.mark.parametrize("bias", [True, False])
def test_layers_that_are_not_called_run_their_hooks(bias: bool) -> None:
    model, inputs = Multiplied(bias), torch.randn(2, 7, 3, requires_grad=True)
    outer = torch.randn(2, 5, 7)
    expected = model(inputs)
    (slope,) = torch.autograd.grad((expected * outer).sum(), inputs)
    read: list[Tensor] = []
    gradients: list[Tensor] = []

    def take(_: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        read.append(args[0])
        if output.requires_grad:
            output.register_hook(gradients.append)

    model.layer.register_forward_hook(take)
    assert torch.equal(model(inputs), expected)
    assert not read
    with LinearCallMode(model):
        found = model(inputs)
    assert torch.equal(found, expected)
    assert torch.equal(read[0], inputs)
    (again,) = torch.autograd.grad((found * outer).sum(), inputs)
    assert_close(again, slope)
    assert_close(gradients[0], outer.mT)
    with torch.no_grad(), LinearCallMode(model):
        assert torch.equal(model(inputs), expected)


def test_without_hooks_nothing_else_is_computed() -> None:
    model, inputs = Multiplied(bias=True), torch.randn(7, 3)
    calls: list[int] = []
    forward = model.layer.forward
    model.layer.forward = lambda x: calls.append(1) or forward(x)  # type: ignore[func-returns-value]
    with LinearCallMode(model):
        model(inputs)
        assert not calls
        model.layer.register_forward_pre_hook(lambda *_: None)
        model(inputs)
    assert calls == [1]


@pytest.fixture
def both() -> tuple[PrunableModel, PrunableModel]:
    """A GPT-2, and the same with ordinary layers."""
    model = FAMILIES["gpt2"]()
    return PrunableModel(model), PrunableModel(twin(model))


def test_matrix_and_gradient() -> None:
    for layer in (Conv1D(3, 5), nn.Linear(5, 3)):
        inputs, outer = torch.randn(7, 5), torch.randn(7, 3)
        assert is_linear(layer)
        assert_close(nn.functional.linear(inputs, read_matrix(layer), layer.bias), layer(inputs))
        assert torch.equal(read_matrix_gradient(layer), torch.zeros(3, 5))
        (layer(inputs) * outer).sum().backward()
        assert_close(read_matrix_gradient(layer), outer.T @ inputs)
        assert torch.equal(as_matrix(layer, as_matrix(layer, layer.weight)), layer.weight)
        assert read_matrix(layer).data_ptr() == layer.weight.data_ptr()
    assert not is_linear(nn.Conv1d(3, 5, 1))
    assert not is_linear(nn.Embedding(3, 5))


def test_named_linears() -> None:
    found = find_linears(FAMILIES["gpt2"]().transformer.h[1], "h.1")
    assert list(found) == [f"h.1.{name}" for name in NAMES]


def test_view() -> None:
    layer = Conv1D(2, 3).requires_grad_(False)
    view, dense = LinearView(layer), layer.weight.clone()
    assert view.module is layer
    assert view.parameters() == [layer.weight]
    assert torch.equal(view.read(), dense.T)
    assert view.read().is_contiguous()
    new = torch.tensor([[0.0, 1.0, -0.0], [2.0, 3.0, 4.0]])
    view.write(new)
    assert torch.equal(layer.weight, new.T)
    assert layer.weight.shape == (3, 2)
    assert view.n_zeros() == 2
    (effect,) = view.effects(new)
    inputs = torch.randn(4, 3)
    assert_close(effect.outputs(inputs), layer(inputs) - layer.bias)


def test_layout(both: tuple[PrunableModel, PrunableModel]) -> None:
    transposed, ordinary = both
    assert transposed.layout == ordinary.layout
    assert [unit.role for unit in transposed.units_of(1)] == ["q", "k", "v", "o", "up", "down"]
    assert [unit.count for unit in transposed.units_of(1)] == [1024, 1024, 1024, 1024, 4096, 4096]


def test_statistics(both: tuple[PrunableModel, PrunableModel], tiny_tokens: Tensor) -> None:
    visits = [walk(s, tiny_tokens, Statistic.HESSIAN, rewritten=False) for s in both]
    for found, expected in zip(*visits, strict=True):
        for name, statistics in found.statistics.items():
            assert statistics.n_tokens == tiny_tokens.numel()
            assert_close(statistics.hessian(), expected.statistics[name].hessian())
        up, down = (f"transformer.h.{found.block}.mlp.{name}" for name in ("c_fc", "c_proj"))
        assert found.evidence[up].following is found.statistics[down]


def test_weight_gradients(both: tuple[PrunableModel, PrunableModel], tiny_tokens: Tensor) -> None:
    found, expected = (compute_weight_gradients(subject, tiny_tokens[:3]) for subject in both)
    for name, known in found.items():
        assert known.mean.abs().max() > 0
        assert_close(known.mean, expected[name].mean)
        assert_close(known.rms, expected[name].rms)


@pytest.mark.parametrize(("name", "pattern"), [*((name, None) for name in OF_WEIGHTS), *PATTERNS])
def test_pruners(
    name: str,
    pattern: str | None,
    both: tuple[PrunableModel, PrunableModel],
    tiny_tokens: Tensor,
) -> None:
    pruner = PRUNERS.create(name, **({"pattern": pattern} if pattern else {}))
    for subject in both:
        layout = subject.layout
        profile = Budget(0.5).uniform(layout, bounds_of(layout, {}))
        prune_sequentially(subject, profile, pruner, tiny_tokens)
    for unit, view in both[0].views.items():
        expected = both[1].views[unit].read()
        assert_close(view.read(), expected, rtol=1e-3, atol=1e-4)
        assert torch.equal(view.read() == 0, expected == 0)


@pytest.mark.parametrize("name", ["als", "besa", "cfsp", "gauss_newton", "greedy"])
def test_allocators(name: str, both: tuple[PrunableModel, PrunableModel]) -> None:
    tokens = draw_random_tokens(2, 16)
    found, expected = (
        ALLOCATORS.create(name).allocate(s, tokens, Budget(0.5), bounds_of(s.layout, {}))
        for s in both
    )
    assert found == expected
    assert found.sparsity == 0.5


def test_structures(tiny_tokens: Tensor) -> None:
    model = FAMILIES["gpt2"]()
    both = [PrunableModel(m, units="width") for m in (model, twin(model))]
    for subject in both:
        layout = subject.layout
        assert [(unit.role, unit.count, unit.cost) for unit in layout] == [
            ("feed_forward", 128, 64)
        ] * 3
        profile = Budget(0.5).uniform(layout, bounds_of(layout, {}))
        prune_sequentially(subject, profile, PRUNERS.create("wanda_sp"), tiny_tokens)
    for name, view in both[0].views.items():
        assert_close(view.read(), both[1].views[name].read())
        assert view.n_zeros() == 64
