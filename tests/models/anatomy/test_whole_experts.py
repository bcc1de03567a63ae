"""Whole experts of every family: removed, they are as if the router never chose them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from sparsity_search.errors import ModelError
from sparsity_search.evidence.statistics import Statistic
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.anatomy.whole_experts import ExpertsView
from sparsity_search.models.running.walk import walk
from sparsity_search.models.surgery.materialise import prepare_for_saving
from sparsity_search.profiles.budget import Budget
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.pruners.reap import REAPPruner
from sparsity_search.pruners.stun import STUNPruner
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.testing.evaluator import copy_weights, draw_random_tokens
from sparsity_search.testing.families import FAMILIES
from tests.helpers.fewer_experts import COUNT, REMOVABLE, make, never_chosen, require, saliencies
from tests.helpers.mixtures import logits


@pytest.fixture(params=REMOVABLE)
def family(request: pytest.FixtureRequest) -> str:
    require(request.param)
    return str(request.param)


@pytest.fixture
def tokens() -> Tensor:
    return draw_random_tokens(4, 12)


def removed_of(subject: PrunableModel) -> dict[str, list[int]]:
    """Return by mixture the experts that are gone."""
    views = {n: v for n, v in subject.views.items() if isinstance(v, ExpertsView)}
    return {n: sorted({*range(COUNT)} - {*v.kept.tolist()}) for n, v in views.items()}


def halved(subject: PrunableModel) -> SparsityProfile:
    return Budget(0.5).uniform(subject.layout)


def test_removed_experts_are_never_chosen(family: str, tokens: Tensor, tmp_path: Path) -> None:
    model, dense = make(family), make(family)
    before, said = copy_weights(model), logits(model, tokens)
    subject = PrunableModel(model, units="experts")
    profile = halved(subject)
    with subject.preserved():
        prune_sequentially(subject, profile, REAPPruner(), tokens)
        subject.verify(profile)
        gone, made = removed_of(subject), logits(model, tokens)
        with never_chosen(dense, gone):
            assert_close(made, logits(dense, tokens), rtol=1e-5, atol=1e-5)
        assert all(len(experts) == COUNT // 2 for experts in gone.values())
        assert not torch.allclose(made, said, atol=1e-3)
        prepare_for_saving(subject).save_pretrained(tmp_path / "m")
    loaded, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", dtype=torch.float32, output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"))
    assert_close(logits(loaded.eval(), tokens), made, rtol=1e-5, atol=1e-5)
    assert PrunableModel(loaded, units="weights").layout  # can be pruned on
    after = copy_weights(model)
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(logits(model, tokens), said)


def test_saliency_is_that_of_single_tokens(family: str, tokens: Tensor) -> None:
    model = make(family)
    expected = saliencies(model, tokens)
    subject = PrunableModel(model, units="experts")
    for visit in walk(subject, tokens, Statistic.NONE, rewritten=False):
        for name, evidence in visit.evidence.items():
            assert evidence.routing is not None
            found = evidence.routing.saliency.double()
            assert_close(found, torch.tensor(expected[name]).double(), rtol=1e-4, atol=1e-7)


def test_the_consumers_inputs_make_the_output(tokens: Tensor) -> None:
    """Of Llama 4, whose experts read all tokens times their gate weights, two for each token."""
    model, made = make("llama4_text"), []
    experts = model.model.layers[1].feed_forward.experts
    handle = experts.register_forward_hook(lambda _, __, output: made.append(output))
    logits(model, tokens)
    handle.remove()
    output = torch.cat([part.view(COUNT, -1, 64).sum(dim=0) for part in made])
    subject = PrunableModel(model, units="experts")
    [visit] = [v for v in walk(subject, tokens, Statistic.HESSIAN, rewritten=False) if v.units]
    [(name, view)] = subject.views.items()
    assert view.structures is not None
    consumer = view.structures.consumer(view.read())
    found = consumer @ visit.statistics[name].hessian() @ consumer.T
    assert_close(found, output.T @ output / len(output), rtol=1e-4, atol=1e-6)
    routing = visit.evidence[name].routing
    assert routing is not None
    assert int(routing.tokens.sum()) == int(routing.coactivation.sum()) == 2 * tokens.numel()


def test_everything_of_an_expert_is_in_its_columns() -> None:
    """Of gpt-oss: transposed matrices, biases, and a router with a bias."""
    model = make("gpt_oss")
    subject = PrunableModel(model, units="experts")
    mixture = model.model.layers[1].mlp
    view, experts, router = subject.views["model.layers.1.mlp"], mixture.experts, mixture.router
    hidden, inner = 64, 128
    shape = view.structures
    assert shape is not None
    bodies = shape.bodies(view.read())
    for expert in range(COUNT):
        own = bodies[:, expert]
        assert torch.equal(own[:, :inner], experts.down_proj[expert].T)
        assert torch.equal(own[:, inner : 3 * inner], experts.gate_up_proj[expert])
        assert torch.equal(own[:, -1], router.weight[expert])
        packed = own[:, 3 * inner : -1].T.flatten()
        names = ("gate_up_proj_bias", "down_proj_bias")
        numbers = [*(getattr(experts, n)[expert] for n in names), router.bias[expert, None]]
        assert sorted(packed[: 3 * inner - inner + hidden + 1].tolist()) == sorted(
            torch.cat(numbers).tolist()
        )
        assert not packed[2 * inner + hidden + 1 :].any()
    weights = 3 * inner * hidden + hidden + 2 * inner + hidden + 1
    assert [(unit.count, unit.cost) for unit in subject.layout] == 2 * [(COUNT, weights)]


def test_shared_experts_stay(tokens: Tensor) -> None:
    for name, part in (("deepseek_v3", "shared_experts"), ("qwen2_moe", "shared_expert")):
        model = make(name)
        subject = PrunableModel(model, units="experts")
        before = {k: v for k, v in copy_weights(model).items() if part in k}
        prune_sequentially(subject, halved(subject), REAPPruner(), tokens)
        after = copy_weights(model)
        assert before
        assert all(torch.equal(after[k], value) for k, value in before.items())


@pytest.mark.parametrize("pruner", [REAPPruner(), STUNPruner()], ids=["reap", "stun"])
def test_groups_stay_of_one_size(pruner: Any, tokens: Tensor) -> None:
    """Each of the four groups loses one of its four experts: the one of least saliency."""
    model = make("deepseek_v3", n_routed_experts=16, n_group=4, topk_group=2)
    sizes = saliencies(model, tokens)["model.layers.1.mlp"]
    subject = PrunableModel(model, units="experts")
    [unit] = subject.layout
    assert (unit.count, unit.cost % 4) == (4, 0)
    prune_sequentially(subject, SparsityProfile(subject.layout, (1,)), pruner, tokens)
    view = subject.views[unit.name]
    assert isinstance(view, ExpertsView)
    gone = sorted({*range(16)} - {*view.kept.tolist()})
    assert [expert // 4 for expert in gone] == [0, 1, 2, 3]
    if isinstance(pruner, REAPPruner):
        groups = [range(start, start + 4) for start in (0, 4, 8, 12)]
        assert gone == [min(group, key=sizes.__getitem__) for group in groups]
    assert logits(model, tokens).isfinite().all()


def test_groups_need_two_experts_to_choose_from() -> None:
    """A group's score is made of two, also where each token gets one expert of a group."""
    model = make("deepseek_v3", n_routed_experts=16, n_group=4, topk_group=2)
    view = PrunableModel(model, units="experts").views["model.layers.1.mlp"]
    assert isinstance(view, ExpertsView)
    bad = view.read()
    bodies = view.structures.bodies(bad).unflatten(1, (4, 4))
    bodies[:, :, :2] = 0
    view.check(2)
    view.write(bad)
    assert view.kept.tolist() == [2, 3, 6, 7, 10, 11, 14, 15]
    bodies[:, :, 2] = 0
    with pytest.raises(
        ModelError, match=r"4 of 16 experts of 4 groups .* needs 8.*experts=0:0\.5"
    ):
        view.write(bad)


def test_groups_that_would_differ() -> None:
    view = PrunableModel(make("deepseek_v3"), units="experts").views["model.layers.1.mlp"]
    assert view.structures is not None
    bad = view.read()
    view.structures.bodies(bad)[:, [0, 1, 5]] = 0
    with pytest.raises(ModelError, match="2 groups of experts would differ in size"):
        view.write(bad)


def test_types_of_buffers_are_kept(tokens: Tensor, tmp_path: Path) -> None:
    """What corrects the choice is in float32 beside weights in bfloat16, and stays so."""
    make("glm4_moe").save_pretrained(tmp_path / "dense")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.bfloat16)
    router = model.eval().requires_grad_(False).model.layers[1].mlp.gate
    bias = router.e_score_correction_bias.clone()
    assert bias.dtype == torch.float32
    assert not torch.equal(bias, bias.bfloat16().float())
    subject = PrunableModel(model, units="experts")
    prune_sequentially(subject, halved(subject), REAPPruner(), tokens)
    prepare_for_saving(subject).save_pretrained(tmp_path / "m")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.bfloat16)
    kept = sorted({*range(COUNT)} - {*removed_of(subject)["model.layers.1.mlp"]})
    found = loaded.model.layers[1].mlp.gate.e_score_correction_bias
    assert torch.equal(found, bias[kept])
    assert torch.equal(logits(loaded.eval(), tokens), logits(model, tokens))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "deepseek_v4",
            r"experts of model\.layers\.0\.mlp are chosen by whole numbers \(tid2eid\)",
        ),
        ("longcat_flash", r"the experts of model\.layers\.0\.mlp are not two stacks"),
    ],
)
def test_what_is_not_supported(name: str, message: str) -> None:
    require(name)
    with pytest.raises(ModelError, match=f"{message}.*choose --units weights"):
        PrunableModel(FAMILIES[name].make(), units="experts", blocks=r"model\.layers")


def test_routers_with_other_tensors() -> None:
    """A tensor with entries that the architecture does not shrink with its configuration."""
    model = make("qwen3_moe")
    model.model.layers[1].mlp.gate.register_buffer("scale", torch.ones(COUNT))
    with pytest.raises(ModelError, match=r"with 7 experts has no .*mlp\.gate\.scale of the shape"):
        PrunableModel(model, units="experts")


def test_routers_without_rows() -> None:
    model = make("qwen3_moe")
    model.model.layers[1].mlp.gate.weight = nn.Parameter(torch.ones(5, COUNT))
    with pytest.raises(ModelError, match=r"layers\.1\.mlp has no weight with a row for each"):
        PrunableModel(model, units="experts")
