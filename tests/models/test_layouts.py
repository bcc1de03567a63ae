"""Single weights of experts, in every way in which transformers stores them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.testing import assert_close

from sparsity_search.errors import ConfigError, ModelError
from sparsity_search.evidence.statistics import Statistic
from sparsity_search.models.anatomy.banks import FusedBank, find_bank
from sparsity_search.models.anatomy.experts import ExpertMatrix, find_mixtures
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.gradients import compute_weight_gradients
from sparsity_search.models.surgery.materialise import prepare_for_saving
from sparsity_search.profiles.budget import Budget
from sparsity_search.pruners.magnitude import MagnitudePruner
from sparsity_search.pruners.sparsegpt import SparseGPTPruner
from sparsity_search.pruners.wanda import WandaPruner
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.testing.evaluator import copy_weights, draw_random_tokens
from sparsity_search.testing.models import tiny_mixtral
from tests.helpers.expert_formulas import EXPERTS, HIDDEN, INNER, TOP_K
from tests.helpers.layouts import LAYOUTS, Family, layout
from tests.helpers.mixtures import logits, visit_of

BANKS = [name for name in LAYOUTS if name != "listed"]


@pytest.fixture(params=LAYOUTS)
def family(request: pytest.FixtureRequest) -> Family:
    return layout(request.param)


@pytest.fixture(params=BANKS)
def stored(request: pytest.FixtureRequest) -> Family:
    return layout(request.param)


@pytest.fixture
def tokens() -> Tensor:
    return draw_random_tokens(9, 8)  # one full batch of the block runner, and a smaller one


def units(family: Family, module: Any) -> dict[str, tuple[int, str, Tensor]]:
    """Return all units of the family's mixture: expert, matrix, and weight by the formula."""
    return {
        family.unit(expert, name): (expert, name, weight)
        for expert in range(EXPERTS)
        for name, weight in family.matrices(module, expert).items()
    }


def test_views_read_and_write(family: Family, tokens: Tensor) -> None:
    model = family.make()
    module = family.module(model)
    subject = PrunableModel(model)
    before = copy_weights(model)
    generator = torch.Generator().manual_seed(1)
    for unit, (expert, name, weight) in units(family, module).items():
        view = subject.views[unit]
        assert view.read().is_contiguous()
        assert torch.equal(view.read().double(), weight)
        other = torch.randn(weight.shape, generator=generator)
        dense = view.read().clone()
        view.write(other)
        assert torch.equal(view.read(), other)
        for number in range(EXPERTS):
            found = family.matrices(module, number)
            assert torch.equal(found[name], other.double()) == (number == expert)
        view.write(dense)
    assert all(torch.equal(value, before[name]) for name, value in copy_weights(model).items())


def test_routers_are_no_units(family: Family) -> None:
    model = family.make()
    found = next(m for m in find_mixtures(model) if m.module is family.module(model))
    owner = family.rows.rpartition(".")[0]
    assert found.module.get_submodule(owner) in found.gates()
    assert found.count == EXPERTS
    pruned = {id(parameter) for parameter in PrunableModel(model).parameters()}
    for name, parameter in model.named_parameters():
        if "router" in name or ".gate." in name or "bias" in name:
            assert id(parameter) not in pruned


def test_all_other_weights_are_units(family: Family) -> None:
    model = family.make()
    pruned = {id(parameter) for parameter in PrunableModel(model).parameters()}
    left = [n for n, p in model.named_parameters() if p.ndim > 1 and id(p) not in pruned]
    assert all(
        any(part in n for part in ("embed", "wte", "head", "router", ".gate.", "bias"))
        for n in left
    )


def test_statistics_are_those_of_the_routed_tokens(family: Family, tokens: Tensor) -> None:
    model = family.make()
    module = family.module(model)
    got = family.direct(model, tokens)
    visit = visit_of(PrunableModel(model), tokens, Statistic.HESSIAN)
    assert sum(map(len, got)) == TOP_K * tokens.numel()
    for unit, (expert, name, _) in units(family, module).items():
        inputs = torch.stack([family.reads(module, expert, name, t) for t in got[expert]])
        found = visit.statistics[unit]
        assert found.n_tokens == len(inputs)
        expected = inputs.T @ inputs / len(inputs)
        assert_close(found.hessian().double(), expected, rtol=1e-4, atol=1e-5)


def test_experts_without_tokens_see_what_others_get(family: Family, tokens: Tensor) -> None:
    model = family.make()
    family.unused(model, [1])
    module = family.module(model)
    got = family.direct(model, tokens)
    assert not got[1]
    everything = [token for routed in got for token in routed]  # each as often as it is routed
    subject = PrunableModel(model)
    visit = visit_of(subject, tokens, Statistic.HESSIAN)
    for name in family.matrices(module, 1):
        inputs = torch.stack([family.reads(module, 1, name, t) for t in everything])
        found = visit.statistics[family.unit(1, name)]
        assert found.n_tokens in (len(inputs), tokens.numel())
        expected = inputs.T @ inputs / len(inputs)
        assert_close(found.hessian().double(), expected, rtol=1e-4, atol=1e-5)
        kept = visit.statistics[family.unit(2, name)]
        assert kept.n_tokens == len(got[2])
    where = f"{family.mixture}.{family.experts}"
    assert f"{where}: no token is routed to expert 1: calibrated with all tokens" in visit.notes
    profile = Budget(0.5).uniform(subject.layout)
    notes = prune_sequentially(subject, profile, SparseGPTPruner(block_size=16), tokens)
    subject.verify(profile)
    assert any("no token is routed to expert 1" in note for note in notes)
    assert not any(m._forward_hooks for m in model.modules())


def test_experts_with_few_tokens_are_told(family: Family) -> None:
    model = family.make()
    got = family.direct(model, few := draw_random_tokens(2, 8))
    notes = visit_of(PrunableModel(model), few, Statistic.NORM).notes
    names = ", ".join(str(e) for e in range(EXPERTS) if 0 < len(got[e]) < HIDDEN)
    where = f"{family.mixture}.{family.experts}"
    assert f"{where}: fewer tokens than inputs are routed to expert {names}" in notes


@pytest.mark.parametrize(
    "pruner",
    [MagnitudePruner(), WandaPruner(), SparseGPTPruner(block_size=16)],
    ids=lambda p: type(p).__name__,
)
def test_pruned_saved_and_loaded(
    family: Family, pruner: Any, tokens: Tensor, tmp_path: Path
) -> None:
    model = family.make()
    module = family.module(model)
    before, said = copy_weights(model), logits(model, tokens)
    subject = PrunableModel(model)
    profile = Budget(0.5).uniform(subject.layout)
    prune_sequentially(subject, profile, pruner, tokens)
    subject.verify(profile)
    for weight in (weight for _, _, weight in units(family, module).values()):
        assert int((weight == 0).sum()) == weight.numel() // 2
    after = copy_weights(model)
    assert before.keys() == after.keys()
    pruned = {id(parameter) for parameter in subject.parameters()}
    changed = {name for name, p in model.named_parameters() if id(p) in pruned}
    assert {n for n in after if not torch.equal(after[n], before[n])} == changed
    assert not torch.allclose(logits(model, tokens), said, atol=1e-2)
    if isinstance(model, type(tiny_mixtral())):
        return  # its list of experts is no model of transformers
    prepare_for_saving(subject).save_pretrained(tmp_path / "m")
    loaded = type(model).from_pretrained(tmp_path / "m", dtype=torch.float32).eval()
    assert torch.equal(logits(loaded, tokens), logits(model, tokens))


def test_gradients_are_those_of_the_matrices(family: Family, tokens: Tensor) -> None:
    model = family.make()
    module = family.module(model)
    row = tokens[:1]
    found = compute_weight_gradients(PrunableModel(model), row)
    parameters = [p for n, p in model.named_parameters() if n.startswith(f"{family.mixture}.")]
    for parameter in parameters:
        parameter.requires_grad_(True)
    loss = model(input_ids=row, labels=row, use_cache=False).loss
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(False)
        parameter.data = torch.zeros_like(parameter) if gradient is None else gradient
    for unit, (_, _, gradient) in units(family, module).items():
        assert_close(found[unit].mean.double(), gradient, rtol=1e-3, atol=1e-6)


def test_the_consumers_activations_make_the_output(stored: Family) -> None:
    model = stored.make()
    module = stored.module(model)
    bank = find_bank(module.get_submodule(stored.experts))
    assert bank is not None
    tokens = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(0))
    last = list(stored.matrices(module, 2))[-1]
    expected = torch.stack([stored.activation(module, 2, token) for token in tokens.double()])
    assert_close(bank.activations(2, tokens).double(), expected, rtol=1e-4, atol=1e-5)
    weight = stored.matrices(module, 2)[last]
    bias = getattr(module.get_submodule(stored.experts), f"{last}_bias", None)
    made = expected @ weight.T + (0 if bias is None else bias[2].double())
    assert_close(bank.outputs(2, tokens).double(), made, rtol=1e-4, atol=1e-5)


def test_a_parameter_with_matrices_replaced(stored: Family) -> None:
    model = stored.make()
    module = stored.module(model)
    subject = PrunableModel(model)
    for unit, (expert, _, weight) in units(stored, module).items():
        view = subject.views[unit]
        assert isinstance(view, ExpertMatrix)
        other = torch.randn(weight.shape, requires_grad=True)
        whole = view.assembled({expert: other})
        parameter = view.parameters()[0]
        view.write(other.detach())
        assert torch.equal(whole, parameter)
        whole.sum().backward()
        assert torch.equal(other.grad, torch.ones_like(other))


def test_experts_have_no_effects(family: Family) -> None:
    model = family.make()
    view = PrunableModel(model).views[next(iter(units(family, family.module(model))))]
    with pytest.raises(ConfigError, match="--exclude"):
        view.effects(view.read())


@pytest.mark.parametrize("name", ["dbrx", "jetmoe", "listed"])
def test_whole_experts_of_other_layouts(name: str) -> None:
    with pytest.raises(
        ModelError, match="whole experts cannot be removed: choose --units weights"
    ):
        PrunableModel(layout(name).make(), units="experts")


ROLES = {
    "nemotron_h": ["expert_up", "expert_down"],
    "dbrx": ["expert_gate", "expert_up", "expert_down"],
    "jetmoe": ["expert_linear"],
    "listed": ["gate", "up", "down"],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_roles_in_forward_order(name: str) -> None:
    family = layout(name)
    model = family.make()
    wanted = units(family, family.module(model))
    found = [unit for unit in PrunableModel(model).layout if unit.name in wanted]
    assert [unit.name for unit in found] == list(wanted)
    roles = ROLES.get(name, ["expert_gate_up", "expert_down"])
    assert [unit.role for unit in found] == roles * EXPERTS
    assert [unit.count for unit in found] == [weight.numel() for _, _, weight in wanted.values()]


class Strange(nn.Module):
    """Experts whose gate and up are parameters of their own, as no bank has them."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("gate_proj", "up_proj"):
            self.register_parameter(name, nn.Parameter(torch.randn(EXPERTS, INNER, HIDDEN)))
        self.down_proj = nn.Parameter(torch.randn(EXPERTS, HIDDEN, INNER))
        self.act_fn = nn.SiLU()


def test_unknown_layouts_are_told() -> None:
    model = tiny_mixtral()
    model.model.layers[1].mlp.shared_experts = Strange()
    assert find_bank(Strange()) is None
    with pytest.raises(ModelError) as caught:
        PrunableModel(model)
    assert str(caught.value) == (
        "model.layers.1.mlp.shared_experts.gate_proj (4 x 16 x 32) looks like experts in an "
        "unknown storage: leave them dense with --exclude 'shared_experts'"
    )
    subject = PrunableModel(model, exclude="shared_experts")
    dense = PrunableModel(tiny_mixtral())
    assert [unit.name for unit in subject.layout] == [unit.name for unit in dense.layout]


def test_only_experts_are_unknown() -> None:
    """Convolutions and what mixers keep in three dimensions are no experts."""
    model = tiny_mixtral()
    mlp = model.model.layers[1].mlp
    mlp.conv = nn.Conv1d(HIDDEN, HIDDEN, 4)
    model.model.layers[1].decay = nn.Parameter(torch.randn(2, 3, 4))
    PrunableModel(model)


def test_experts_that_do_nothing() -> None:
    """LongCat-Flash: some experts have no weights, but rows in one of the parameters."""
    shape = {"n_routed_experts": EXPERTS, "zero_expert_num": 2, "expert_ffn_hidden_size": INNER}
    config = transformers.LongcatFlashConfig(hidden_size=HIDDEN, **shape)
    module = transformers.models.longcat_flash.modeling_longcat_flash
    experts = module.LongcatFlashExperts(config).requires_grad_(False)
    for parameter in experts.parameters():
        nn.init.normal_(parameter.data, std=0.2)
    bank = find_bank(experts)
    assert bank is not None
    assert bank.count == EXPERTS
    tokens = torch.randn(6, HIDDEN, generator=torch.Generator().manual_seed(0))
    chosen = torch.tensor([[0, 5], [4, 1], [5, 4], [1, 2], [3, 1], [2, 0]])
    gates = torch.ones(6, 2)
    expected = torch.zeros(6, HIDDEN)
    for row, pair in enumerate(chosen.tolist()):
        for expert in pair:
            one = tokens[row : row + 1]
            expected[row] += (bank.outputs(expert, one) if expert < EXPERTS else one)[0]
    assert_close(experts(tokens, chosen, gates), expected)
    assert torch.equal(bank.tokens(1, (tokens, chosen, gates)), tokens[[1, 3, 4]])
    whole = bank.assembled("gate_up_proj", {1: torch.ones(2 * INNER, HIDDEN)})
    assert whole.shape == experts.gate_up_proj.shape
    assert torch.equal(whole[4:], experts.gate_up_proj[4:])


def test_an_expert_with_gate_weight_zero_is_not_chosen() -> None:
    """ZAYA: a token that skips the experts is said to go to the first one, with weight zero."""
    bank = find_bank(tiny_mixtral().model.layers[0].mlp.experts)
    assert bank is not None
    tokens = torch.randn(3, HIDDEN)
    gates = torch.tensor([[0.0], [0.7], [0.5]])
    found = bank.tokens(0, (tokens, torch.tensor([[0], [0], [1]]), gates))
    assert torch.equal(found, tokens[1:2])
    assert isinstance(bank, FusedBank)
    routed = list(bank.routed((tokens, torch.tensor([[0], [0], [1]]), gates)))
    assert [(own.index, own.rows.tolist()) for own in routed] == [(0, [1]), (1, [2])]
