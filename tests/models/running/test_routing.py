from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sparsity_search.evidence.statistics import Statistic
from sparsity_search.models.anatomy.experts import ExpertMatrix
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.gradients import compute_weight_gradients
from sparsity_search.models.running.walk import walk
from sparsity_search.profiles.budget import Budget
from sparsity_search.pruners.sparsegpt import SparseGPTPruner
from sparsity_search.pruners.wanda import WandaPruner
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.testing.evaluator import copy_weights, draw_random_tokens
from sparsity_search.testing.models import tiny_mixtral
from tests.helpers.mixtures import (
    HIDDEN,
    INNER,
    MLP,
    MODELS,
    Direct,
    drop,
    experts_view,
    logits,
    unused,
    visit_of,
)


@pytest.fixture(params=MODELS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tokens() -> Tensor:
    return draw_random_tokens(9, 12)  # one full batch of the block runner, and a smaller one


def test_statistics_are_those_of_the_routed_tokens(family: str, tokens: Tensor) -> None:
    model = MODELS[family]()
    direct = Direct(model, family, tokens)
    visit = visit_of(PrunableModel(model), tokens, Statistic.HESSIAN)
    for expert in range(len(direct.down)):
        routed = direct.tokens_of(expert)
        made = torch.stack([direct.activation(expert, token) for token in routed])
        for name, inputs in (("gate_up_proj", routed), ("down_proj", made)):
            found = visit.statistics[f"{MLP}.experts.{expert}.{name}"]
            assert found.n_tokens == len(inputs)
            assert_close(found.hessian(), inputs.T @ inputs / len(inputs), rtol=1e-4, atol=1e-6)


def test_routing_is_that_of_a_slow_formula(family: str, tokens: Tensor) -> None:
    model = MODELS[family]()
    direct = Direct(model, family, tokens)
    subject = PrunableModel(model, units="experts")
    for statistic in (Statistic.NONE, Statistic.NORM):
        routing = visit_of(subject, tokens, statistic).evidence[MLP].routing
        assert routing is not None
        count = len(direct.down)
        assert routing.tokens.tolist() == [len(direct.tokens_of(e)) for e in range(count)]
        expected = torch.tensor([direct.saliency(e) for e in range(count)])
        assert_close(routing.saliency, expected, rtol=1e-4, atol=1e-6)
        for one in range(count):
            for other in range(count):
                both = sum(one in c and other in c for c in direct.chosen if one != other)
                assert int(routing.coactivation[one, other]) == both


def test_only_mixtures_have_routing(tokens: Tensor) -> None:
    visit = visit_of(PrunableModel(tiny_mixtral()), tokens, Statistic.NORM)
    assert all(known.routing is None for known in visit.evidence.values())


def test_the_consumers_inputs_make_the_output(family: str, tokens: Tensor) -> None:
    model = MODELS[family]()
    mlp, made = model.model.layers[1].mlp, []
    handle = mlp.register_forward_hook(lambda _, __, output: made.append(output))
    logits(model, tokens)
    handle.remove()
    subject = PrunableModel(model, units="experts")
    visit, view = visit_of(subject, tokens, Statistic.HESSIAN), experts_view(subject)
    consumer = view.structures.consumer(view.read())
    found = visit.statistics[MLP]
    output = torch.cat(made).reshape(-1, HIDDEN)
    assert found.n_tokens == len(output)
    assert_close(consumer @ found.mean(), output.mean(0), rtol=1e-4, atol=1e-5)
    second = consumer @ found.hessian() @ consumer.T
    assert_close(second, output.T @ output / len(output), rtol=1e-3, atol=1e-5)


def test_experts_without_tokens_see_all(tokens: Tensor) -> None:
    model = tiny_mixtral()
    unused(model, [2, 5])
    direct = Direct(model, "mixtral", tokens)
    subject = PrunableModel(model)
    visit = visit_of(subject, tokens, Statistic.HESSIAN)
    for expert in (2, 5):
        made = torch.stack([direct.activation(expert, token) for token in direct.hidden])
        for name, inputs in (("gate_up_proj", direct.hidden), ("down_proj", made)):
            found = visit.statistics[f"{MLP}.experts.{expert}.{name}"]
            assert found.n_tokens == tokens.numel()
            assert_close(found.hessian(), inputs.T @ inputs / len(inputs), rtol=1e-4, atol=1e-5)
    routed = sum(visit.statistics[f"{MLP}.experts.{e}.down_proj"].n_tokens for e in range(8))
    assert routed == 2 * tokens.numel() + 2 * tokens.numel()  # others saw their own only
    assert f"{MLP}.experts: no token is routed to expert 2, 5: calibrated with all tokens" in (
        visit.notes
    )


def test_experts_with_few_tokens_are_told(tokens: Tensor) -> None:
    visit = visit_of(PrunableModel(tiny_mixtral()), tokens, Statistic.HESSIAN)
    few = [
        e for e in range(8)
        if visit.statistics[f"{MLP}.experts.{e}.gate_up_proj"].n_tokens < HIDDEN
    ]  # fmt: skip
    assert few
    names = ", ".join(map(str, few))
    assert visit.notes == (
        f"{MLP}.experts: fewer tokens than inputs are routed to expert {names}",
    )
    many = visit_of(PrunableModel(tiny_mixtral()), draw_random_tokens(64, 16), Statistic.HESSIAN)
    assert many.notes == ()


def test_no_hook_is_left(tokens: Tensor) -> None:
    for units in ("weights", "experts"):
        subject = PrunableModel(tiny_mixtral(), units=units)
        for _ in walk(subject, tokens, Statistic.NORM, rewritten=True):
            modules = list(subject.model.modules())
            assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)


@pytest.mark.parametrize("units", ["weights", "experts"])
def test_gradients(units: str, tokens: Tensor) -> None:
    model = tiny_mixtral()
    subject = PrunableModel(model, units=units)
    found = compute_weight_gradients(subject, tokens[:2])
    experts = model.model.layers[1].mlp.experts
    expected = []
    for row in tokens[:2]:
        experts.down_proj.requires_grad_(True)
        loss = model(input_ids=row[None], labels=row[None]).loss
        expected.append(torch.autograd.grad(loss, experts.down_proj)[0])
        experts.down_proj.requires_grad_(False)
    mean = torch.stack(expected).mean(0)
    if units == "weights":
        assert_close(found[f"{MLP}.experts.3.down_proj"].mean, mean[3], rtol=1e-3, atol=1e-6)
    else:
        shape = experts_view(subject).structures
        consumer = shape.bodies(found[MLP].mean)[:, 3, :INNER]
        assert_close(consumer, mean[3], rtol=1e-3, atol=1e-6)


def test_dropping_experts_without_tokens_changes_nothing(tokens: Tensor) -> None:
    model = tiny_mixtral()
    unused(model, [0, 6])
    before = logits(model, tokens)
    subject = PrunableModel(model, units="experts")
    routing = visit_of(subject, tokens, Statistic.NONE).evidence[MLP].routing
    assert routing is not None
    assert routing.saliency[[0, 6]].tolist() == [0.0, 0.0]
    drop(experts_view(subject), [0, 6])
    assert len(model.model.layers[1].mlp.experts.down_proj) == 6
    assert_close(logits(model, tokens), before, rtol=1e-5, atol=1e-5)


def test_routing_of_a_smaller_mixture(tokens: Tensor) -> None:
    model = tiny_mixtral()
    subject = PrunableModel(model, units="experts")
    drop(experts_view(subject), [1, 4])
    direct = Direct(model, "mixtral", tokens)
    visit = visit_of(subject, tokens, Statistic.NORM)
    routing = visit.evidence[MLP].routing
    assert routing is not None
    for local, expert in enumerate([0, 2, 3, 5, 6, 7]):
        assert int(routing.tokens[expert]) == len(direct.tokens_of(local))
        assert float(routing.saliency[expert]) == pytest.approx(direct.saliency(local), rel=1e-4)
    assert routing.tokens[[1, 4]].tolist() == routing.saliency[[1, 4]].tolist() == [0, 0]
    assert (visit.statistics[MLP].norms().view(8, INNER)[[1, 4]] == 0).all()


@pytest.mark.parametrize("pruner", [WandaPruner(), SparseGPTPruner(block_size=16)])
def test_single_weights(family: str, tokens: Tensor, pruner: Any) -> None:
    model = MODELS[family]()
    before = copy_weights(model)
    subject = PrunableModel(model)
    profile = Budget(0.5).uniform(subject.layout)
    prune_sequentially(subject, profile, pruner, tokens)
    experts = model.model.layers[1].mlp.experts
    for expert in range(len(experts.down_proj)):
        assert int((experts.down_proj[expert] == 0).sum()) == HIDDEN * INNER // 2
        assert int((experts.gate_up_proj[expert] == 0).sum()) == HIDDEN * INNER
    same = {
        name for name, value in copy_weights(model).items() if torch.equal(value, before[name])
    }
    assert {name for name in before if "norm" in name or "embed" in name} <= same
    assert {"lm_head.weight", f"{MLP}.gate.weight"} <= same
    assert len(before) - len(same) == {"mixtral": 12, "qwen3_moe": 13}[family]


def test_wanda_in_an_expert(tokens: Tensor) -> None:
    model = tiny_mixtral()
    direct = Direct(model, "mixtral", tokens)
    subject = PrunableModel(model)
    visit = visit_of(subject, tokens, Statistic.NORM)
    name = f"{MLP}.experts.6.gate_up_proj"
    view = subject.views[name]
    assert isinstance(view, ExpertMatrix)
    pruned = WandaPruner().prune(
        view.read(), visit.evidence[name], [view.read().numel() // 2], seed=0
    )
    score = view.read().abs() * direct.tokens_of(6).square().mean(0).sqrt()
    lowest = score.argsort(dim=1)[:, : HIDDEN // 2]
    expected = torch.zeros_like(score, dtype=torch.bool).scatter_(1, lowest, True)
    assert torch.equal(pruned.at(view.read(), view.read().numel() // 2) == 0, expected)


def test_experts_without_tokens_can_be_pruned(tokens: Tensor) -> None:
    model = tiny_mixtral()
    unused(model, [2, 5])
    subject = PrunableModel(model)
    profile = Budget(0.5).uniform(subject.layout)
    prune_sequentially(subject, profile, SparseGPTPruner(block_size=16), tokens)
    subject.verify(profile)
