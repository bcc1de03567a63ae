from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from sparsity_search.errors import ConfigError, ModelError, NumericalError
from sparsity_search.evidence.evidence import Evidence, Routing
from sparsity_search.evidence.statistics import InputStatistics, Statistic
from sparsity_search.evidence.structures import StructureLayout
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.walk import walk
from sparsity_search.models.surgery.materialise import prepare_for_saving
from sparsity_search.profiles.budget import Budget
from sparsity_search.profiles.profile import from_counts
from sparsity_search.pruners.magnitude import MagnitudePruner
from sparsity_search.pruners.reap import REAPPruner
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.supernet.build import SupernetDesign, build_supernet
from sparsity_search.testing.evaluator import copy_weights, draw_random_tokens
from sparsity_search.testing.models import tiny_mixtral
from sparsity_search.testing.pruner import draw_gaussian

SHAPE = StructureLayout(count=6, inner=2, width=7, biases=0)
WEIGHT = draw_gaussian(4, SHAPE.count * SHAPE.width)


@pytest.fixture
def tokens() -> Tensor:
    return draw_random_tokens(9, 12)


def known(saliency: list[float]) -> Evidence:
    together = torch.zeros(len(saliency), len(saliency), dtype=torch.int64)
    tokens = torch.ones(len(saliency), dtype=torch.int64)
    routing = Routing(tokens=tokens, saliency=torch.tensor(saliency), coactivation=together)
    inputs = InputStatistics(12, Statistic.NONE)
    return Evidence(inputs=inputs, structures=SHAPE, routing=routing)


def saliency(subject: PrunableModel, tokens: Tensor, block: int) -> list[float]:
    """Mean of gate weight times output norm, from the module's parts."""
    mlp, found = subject.blocks[block].mlp, []
    handle = mlp.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    with torch.inference_mode():
        subject.model(input_ids=tokens, use_cache=False)
    handle.remove()
    hidden = found[0].reshape(-1, found[0].shape[-1])
    shares, chosen = (hidden @ mlp.gate.weight.T).softmax(1).topk(2, dim=1)
    shares = shares / shares.sum(1, keepdim=True)
    result = []
    for expert in range(len(mlp.gate.weight)):
        gate, up = (hidden @ mlp.experts.gate_up_proj[expert].T).chunk(2, dim=1)
        size = (torch.nn.functional.silu(gate) * up @ mlp.experts.down_proj[expert].T).norm(dim=1)
        routed = (chosen == expert).any(1)
        gates = torch.where(chosen == expert, shares, 0).sum(1)
        result.append(float((gates * size)[routed].mean()))
    return result


def test_lowest_go_first() -> None:
    variants = REAPPruner().prune(WEIGHT, known([0.3, 0.0, 2.0, 0.1, 5.0, 0.2]), range(7), seed=0)
    order = [1, 3, 5, 0, 2, 4]
    for count in range(7):
        gone = SHAPE.empty(variants.at(WEIGHT, count)).nonzero().flatten().tolist()
        assert gone == sorted(order[:count])


def test_ties_by_seed() -> None:
    evidence = known([1.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    found = {tuple(REAPPruner().order(WEIGHT, evidence, seed).tolist()[:4]) for seed in range(8)}
    assert len(found) > 1
    assert {tuple(sorted(first)) for first in found} == {(1, 2, 3, 4)}


def test_needs_routing() -> None:
    evidence = Evidence(inputs=InputStatistics(12, Statistic.NONE), structures=SHAPE)
    with pytest.raises(ConfigError, match="--units experts"):
        REAPPruner().prune(WEIGHT, evidence, [1], seed=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite(bad: float) -> None:
    with pytest.raises(NumericalError):
        REAPPruner().prune(WEIGHT, known([1.0, 2.0, bad, 3.0, 4.0, 5.0]), [1], seed=0)


@pytest.mark.parametrize("target", [0.25, 0.5])
def test_each_block_sees_the_pruned_one(tokens: Tensor, target: float, tmp_path: Path) -> None:
    subject = PrunableModel(tiny_mixtral(), units="experts")
    other = PrunableModel(tiny_mixtral(), units="experts")
    profile = Budget(target).uniform(subject.layout)
    count = round(target * 8)
    assert profile.removed == (count, count)
    prune_sequentially(subject, profile, REAPPruner(), tokens)
    for block in range(2):
        scores = saliency(other, tokens, block)
        view = list(other.views.values())[block]
        weight, lowest = view.read(), sorted(range(8), key=scores.__getitem__)[:count]
        assert view.structures is not None
        view.structures.bodies(weight)[:, lowest] = 0
        view.write(weight)
    expected = copy_weights(other.model)
    assert all(torch.equal(w, expected[name]) for name, w in copy_weights(subject.model).items())
    prepare_for_saving(subject).save_pretrained(tmp_path / "m")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32).eval()
    assert loaded.config.num_local_experts == 8 - count
    with torch.inference_mode():
        one, two = (m(input_ids=tokens, use_cache=False).logits for m in (loaded, subject.model))
    assert torch.equal(one, two)


def test_the_rest_can_be_pruned_inside(tokens: Tensor) -> None:
    """Dropping, then single weights of the experts that are left, as STUN does it."""
    subject = PrunableModel(tiny_mixtral(), units="experts")
    prune_sequentially(subject, Budget(0.5).uniform(subject.layout), REAPPruner(), tokens)
    inside = PrunableModel(prepare_for_saving(subject))
    assert len(inside.layout) == 2 * (4 + 2 * 4)
    profile = Budget(0.5).uniform(inside.layout)
    prune_sequentially(inside, profile, MagnitudePruner(), tokens)
    inside.verify(profile)


def test_too_few_experts_left(tokens: Tensor) -> None:
    subject = PrunableModel(tiny_mixtral(), units="experts")
    with pytest.raises(ModelError, match="1 of 8 experts would remain"):
        prune_sequentially(subject, from_counts(subject.layout, [7, 7]), REAPPruner(), tokens)


def test_supernet(tokens: Tensor) -> None:
    """Switching among counts gives the models that pruning gives, and the dense one back."""
    subject = PrunableModel(tiny_mixtral(), units="experts")
    before = copy_weights(subject.model)
    centre = from_counts(subject.layout, [2, 2])
    net = build_supernet(
        subject, tokens, SupernetDesign(pruner=REAPPruner(), tables=[(0, 2, 4)] * 2, centre=centre)
    )
    pruned = PrunableModel(tiny_mixtral(), units="experts")
    prune_sequentially(pruned, centre, REAPPruner(), tokens)
    with net.resident() as switch:
        for counts in ([4, 0], [0, 4], [2, 2]):
            switch.to(from_counts(subject.layout, counts))
            assert [8 - len(block.mlp.gate.weight) for block in subject.blocks] == counts
        expected = copy_weights(pruned.model)
        assert all(torch.equal(w, expected[n]) for n, w in copy_weights(subject.model).items())
    assert all(torch.equal(w, before[name]) for name, w in copy_weights(subject.model).items())


def test_routing_is_gathered_for_experts_alone(tokens: Tensor) -> None:
    subject = PrunableModel(tiny_mixtral(), units="experts")
    for visit in walk(subject, tokens, REAPPruner().requires, rewritten=False):
        (known,) = visit.evidence.values()
        assert known.routing is not None
        assert int(known.routing.tokens.sum()) == 2 * tokens.numel()
