from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sparsity_search.allocators.besa as module
from sparsity_search.allocators.besa import BESAAllocator
from sparsity_search.allocators.besa.block_training import (
    compute_relative_error,
    observe,
)
from sparsity_search.evidence.statistics import Statistic
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.runner import BlockRunner
from sparsity_search.models.running.stream import list_hidden
from sparsity_search.models.running.walk import walk
from sparsity_search.testing.allocator import assert_unchanged
from sparsity_search.testing.evaluator import copy_weights, draw_random_tokens
from sparsity_search.testing.models import tiny_llama, tiny_mixtral
from tests.helpers.layouts import LAYOUTS, layout
from tests.helpers.masked_models import linear_block, normal, subject_of


@pytest.fixture
def tokens() -> Tensor:
    return draw_random_tokens(3, 12)


def fitted(weight: Tensor, target: float, **settings: Any) -> np.ndarray:
    block, states, wanted = linear_block(weight)
    return BESAAllocator(**settings)._fit(block, states, wanted, target)["a"].row_rates().numpy()


def uneven() -> Tensor:
    """Two rows alike that a few weights make, two whose weights are all alike."""
    few, many = torch.full((32,), 0.01), torch.ones(32)
    few[::8] = 3.0
    return torch.stack([few, many, few, many]) * normal(32).sign()


def test_rows_alike_have_one_rate_and_robust_rows_lose_more() -> None:
    rates = fitted(uneven(), 0.6, epochs=10)
    assert rates[0] == rates[2] > rates[1] + 0.2
    assert rates[1] == rates[3]
    assert rates.mean() == pytest.approx(0.6, abs=0.03)


def test_one_rate_for_a_layer() -> None:
    rates = fitted(uneven(), 0.6, epochs=3, per="layer")
    assert np.ptp(rates) == 0


@pytest.mark.parametrize("target", [0.3, 0.7, 0.9])
def test_the_penalty_holds_the_target(target: float) -> None:
    off = [
        abs(fitted(normal(6, 40), target, epochs=20, penalty=p).mean() - target) for p in (0, 50)
    ]
    assert off[1] < 0.02 < off[0]


def test_a_step_descends_the_published_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, target, start = normal(3, 20), 0.4, normal(11)
    monkeypatch.setattr(module, "compute_initial_logits", lambda *_: start)  # not at the target
    plain = lambda logits, **_: torch.optim.SGD(logits, lr=1.0)  # noqa: E731
    monkeypatch.setattr(torch.optim, "AdamW", plain)
    block, states, wanted = linear_block(weight)
    states, wanted = states[:1], wanted[:1]
    allocator = BESAAllocator(step=0.1, penalty=3.0)
    masks = allocator._fit(block, states, wanted, target)
    moved = masks["a"].logits.detach()
    mask = allocator._mask(block, "a", target)
    rates, beta = mask.rates, mask.logits.detach().double().softmax(1)
    sparsity = beta @ rates
    order = (weight.abs() * block.statistics["a"].norms()).argsort(dim=1)
    hard = torch.ones(3, 20).double()
    for row, s in enumerate(sparsity):
        hard[row, order[row, : int(20 * float(s) + 1e-3)]] = 0
    x, y = states[0].hidden[0].double(), wanted[0].hidden[0].double()
    w = weight.double()
    difference = x @ (w * hard).T - y
    # d(error)/dmask = 2/H · (difference / ‖y_c‖²)ᵀ x ∘ w
    upstream = 2 / 3 * (difference / y.square().sum(0)).T @ x * w
    by_rank = upstream.gather(1, order)
    to_beta = torch.stack([-by_rank[:, : 2 * d].sum(1) for d in range(11)], dim=1)
    to_beta = to_beta + 3.0 * 2 * (sparsity.mean() - target) / target**2 * rates / 3
    gradient = beta * (to_beta - (beta * to_beta).sum(1, keepdim=True))
    assert abs(float(sparsity.mean()) - target) > 0.05
    np.testing.assert_allclose(start - moved, gradient, atol=1e-6)


def test_relative_error() -> None:
    wanted, output = normal(2, 5, 7), normal(2, 5, 7).flip(1)
    y, z = wanted.double().numpy().reshape(10, 7), output.double().numpy().reshape(10, 7)
    expected = (((y - z) ** 2).sum(0) / (y**2).sum(0)).mean()
    assert float(compute_relative_error(output, wanted)) == pytest.approx(expected, rel=1e-5)
    scale = torch.tensor([1.0, 10, 100, 1, 1, 0.1, 1])
    scaled = compute_relative_error(output * scale, wanted * scale)
    assert float(scaled) == pytest.approx(expected, rel=1e-4)
    assert float(compute_relative_error(wanted.bfloat16(), wanted.bfloat16())) == 0
    wanted[..., 3] = 0  # a silent channel: no division by zero
    assert compute_relative_error(wanted, wanted) == 0
    assert compute_relative_error(output, wanted).isfinite()
    assert float(compute_relative_error(wanted * 0, wanted * 0)) == 0


# ------------------------------------------------------------------ a block of a model


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt_oss", "dbrx", "half"])
def test_masked_block_is_the_block_with_masked_weights(family: str, tokens: Tensor) -> None:
    if family == "mixtral":
        subject = PrunableModel(tiny_mixtral(), r"experts\.[1-6]\.|q_proj")
    elif family in LAYOUTS:
        subject = PrunableModel(layout(family).make(), r"experts\.2\.")
    else:
        dtype = torch.bfloat16 if family == "half" else torch.float32
        subject = PrunableModel(tiny_llama(layers=2, dtype=dtype))
    runner = BlockRunner(subject, tokens, at_once=1)
    hidden = runner.embed()
    block, outputs = observe(subject, runner, 0, hidden)
    np.testing.assert_array_equal(
        *(torch.cat(list_hidden(of)).float() for of in (outputs, runner.run(0, hidden)))
    )
    before = copy_weights(subject.model)
    source = torch.Generator().manual_seed(0)
    masks = {
        name: (torch.rand(view.read().shape, generator=source) < 0.6).float().requires_grad_()
        for name, view in block.views.items()
    }
    found = block(hidden[1], masks).hidden
    gradients = torch.autograd.grad(found.float().square().sum(), list(masks.values()))
    assert_unchanged(subject.model, before)
    assert all(p.grad is None for p in subject.model.parameters())
    with subject.preserved():
        for name, view in block.views.items():
            view.write((view.read() * masks[name].detach()).to(view.read().dtype))
        expected = runner.run(0, [hidden[1]])[0].hidden
    np.testing.assert_allclose(found.detach().float(), expected.float(), atol=1e-5)
    assert sum(float(g.abs().sum()) > 0 for g in gradients) >= len(gradients) - 4


def test_gradient_of_a_block_by_differences(tokens: Tensor) -> None:
    subject = subject_of(1, dtype=torch.float64)
    runner = BlockRunner(subject, tokens, at_once=1)
    hidden = runner.embed()
    block, _ = observe(subject, runner, 0, hidden)
    name = "model.layers.0.self_attn.k_proj"
    mask = torch.ones(16, 32, dtype=torch.float64).requires_grad_()

    def loss(factor: Tensor) -> Tensor:
        return block(hidden[0], {name: factor}).hidden.square().sum()

    (gradient,) = torch.autograd.grad(loss(mask), [mask])
    shift = torch.zeros_like(mask)
    shift[3, 7] = 0.02  # the model's norms compute in float32
    with torch.no_grad():
        slope = (loss(mask + shift) - loss(mask - shift)) / 0.04
    assert float(gradient[3, 7]) == pytest.approx(float(slope), rel=0.01)


def test_statistics_are_those_of_the_walk(tokens: Tensor) -> None:
    for subject in (subject_of(), *map(PrunableModel, (tiny_mixtral(), layout("listed").make()))):
        runner = BlockRunner(subject, tokens, at_once=1)
        block, _ = observe(subject, runner, 0, runner.embed())
        visit = next(walk(subject, tokens, Statistic.NORM, rewritten=False))
        assert list(block.views) == [unit.name for unit in visit.units]
        for name, statistics in visit.statistics.items():
            norms = block.statistics[name].norms()
            np.testing.assert_allclose(norms, statistics.norms(), rtol=1e-5)
