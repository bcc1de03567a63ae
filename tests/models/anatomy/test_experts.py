from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from sparsity_search.errors import ModelError
from sparsity_search.models.anatomy.banks import find_bank
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.surgery.materialise import prepare_for_saving
from sparsity_search.testing.evaluator import copy_weights, draw_random_tokens
from sparsity_search.testing.models import tiny_llama, tiny_mixtral
from tests.helpers.mixtures import (
    HIDDEN,
    INNER,
    MLP,
    MODELS,
    TOP_K,
    WIDTH,
    drop,
    experts_view,
    logits,
)


@pytest.fixture(params=MODELS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tokens() -> Tensor:
    return draw_random_tokens(9, 12)  # one full batch of the block runner, and a smaller one


def test_experts_are_units(family: str) -> None:
    subject = PrunableModel(MODELS[family](), units="experts")
    count = {"mixtral": 8, "qwen3_moe": 6}[family]
    blocks = {"mixtral": [0, 1], "qwen3_moe": [1]}[family]
    assert [(u.name, u.block) for u in subject.layout] == [
        (f"model.layers.{block}.mlp", block) for block in blocks
    ]
    for unit in subject.layout:
        assert (unit.role, unit.count, unit.cost) == ("experts", count, HIDDEN * WIDTH)
        assert unit.zeros == 0


def test_a_dense_model_has_no_experts() -> None:
    with pytest.raises(ModelError, match="no prunable experts in the 3 blocks"):
        PrunableModel(tiny_llama(), units="experts")


def test_the_matrix_holds_whole_experts() -> None:
    model = tiny_mixtral()
    view = experts_view(PrunableModel(model, units="experts"))
    assert view.structures.biases == 0
    bodies = view.structures.bodies(view.read())
    mlp = model.model.layers[1].mlp
    for expert in range(8):
        assert torch.equal(bodies[:, expert, :INNER], mlp.experts.down_proj[expert])
        assert torch.equal(bodies[:, expert, INNER:-1], mlp.experts.gate_up_proj[expert].T)
        assert torch.equal(bodies[:, expert, -1], mlp.gate.weight[expert])


def test_weights_are_those_of_every_expert(family: str) -> None:
    model = MODELS[family]()
    subject = PrunableModel(model)
    units = [unit for unit in subject.units_of(1) if "experts" in unit.name]
    count = len(model.model.layers[1].mlp.experts.down_proj)
    assert [(u.name, u.role, u.count) for u in units] == [
        (f"{MLP}.experts.{expert}.{matrix}", role, size)
        for expert in range(count)
        for matrix, role, size in (
            ("gate_up_proj", "expert_gate_up", 2 * INNER * HIDDEN),
            ("down_proj", "expert_down", INNER * HIDDEN),
        )
    ]
    others = [unit.role for unit in subject.units_of(1) if unit not in units]
    assert others == ["q", "k", "v", "o"]  # no router


def test_gates_of_shared_experts_are_no_units() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = tiny_mixtral().model.layers[0].mlp.experts
            self.router = nn.Sequential(nn.Linear(HIDDEN, 8))
            self.shared_expert_gate = nn.Linear(HIDDEN, 1)
            self.shared_expert = nn.Sequential(nn.Linear(HIDDEN, 8), nn.Linear(8, HIDDEN))

    model = tiny_mixtral()
    model.model.layers[1].mlp = Shared()
    names = [unit.name for unit in PrunableModel(model).units_of(1) if "mlp" in unit.name]
    assert [n for n in names if "experts." not in n] == [
        f"{MLP}.shared_expert.0",
        f"{MLP}.shared_expert.1",
    ]
    assert len(names) == 2 + 2 * 8


def test_a_matrix_is_a_slice() -> None:
    model = tiny_mixtral()
    experts = model.model.layers[1].mlp.experts
    view = PrunableModel(model).views[f"{MLP}.experts.3.down_proj"]
    assert view.read().data_ptr() == experts.down_proj[3].data_ptr()
    before = experts.down_proj.detach().clone()
    new = torch.arange(HIDDEN * INNER).view(HIDDEN, INNER).float()
    view.write(new)
    assert torch.equal(experts.down_proj[3], new)
    others = [0, 1, 2, 4, 5, 6, 7]
    assert torch.equal(experts.down_proj[others], before[others])
    assert view.n_zeros() == 1
    new.fill_(9.0)
    assert view.n_zeros() == 1


def test_dropping_equals_a_model_without_them(family: str, tokens: Tensor) -> None:
    model = MODELS[family]()
    count = len(model.model.layers[1].mlp.experts.down_proj)
    kept = [e for e in range(count) if e not in (1, 4)]
    state = model.state_dict()
    for name, value in state.items():
        if "mlp.experts." in name or "mlp.gate.weight" in name:
            state[name] = value[kept]
    key = {"mixtral": "num_local_experts", "qwen3_moe": "num_experts"}[family]
    other = MODELS[family](**{key: len(kept)})
    other.load_state_dict(state)
    before = logits(model, tokens)
    subject = PrunableModel(model, units="experts")
    for view in subject.views.values():
        drop(view, [1, 4])  # type: ignore[arg-type]
    assert_close(logits(model, tokens), logits(other, tokens))
    assert not torch.allclose(logits(model, tokens), before, atol=1e-2)
    for view in subject.views.values():
        assert view.n_zeros() == 2
        assert view.kept.tolist() == kept  # type: ignore[attr-defined]
    assert subject.zeros().removed == (2,) * len(subject.layout)


@pytest.mark.parametrize("inference", [False, True])
def test_preserved(family: str, tokens: Tensor, inference: bool) -> None:
    model = MODELS[family]()
    before, said = copy_weights(model), logits(model, tokens)
    parameters = dict(model.named_parameters())
    subject = PrunableModel(model, units="experts")
    view = experts_view(subject)
    with torch.inference_mode(inference), subject.preserved():
        drop(view, [0, 2])
        assert (
            copy_weights(model)[f"{MLP}.gate.weight"].shape[0]
            == len(before[f"{MLP}.gate.weight"]) - 2
        )
        drop(view, [1])
    after = copy_weights(model)
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(parameters[name] is value for name, value in model.named_parameters())
    assert torch.equal(logits(model, tokens), said)
    for parameter in model.parameters():  # can still be written and trained
        parameter.add_(0)
        assert not parameter.is_inference()


def test_fewer_experts_than_a_token_needs(family: str) -> None:
    model = MODELS[family]()
    view = experts_view(PrunableModel(model, units="experts"))
    count, least = view.structures.count, TOP_K[family]
    before = copy_weights(model)
    with pytest.raises(ModelError, match=f"{least - 1} of {count} experts .* routed to {least}"):
        drop(view, list(range(count - least + 1)))
    after = copy_weights(model)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    drop(view, list(range(count - least)))
    assert len(model.model.layers[1].mlp.experts.down_proj) == least


def test_an_expert_that_is_empty_already() -> None:
    model = tiny_mixtral()
    mlp = model.model.layers[1].mlp
    for parameter in (mlp.experts.gate_up_proj, mlp.experts.down_proj, mlp.gate.weight):
        parameter[3] = 0
    before = copy_weights(model)
    subject = PrunableModel(model, units="experts")
    assert [unit.zeros for unit in subject.layout] == [0, 1]
    with subject.preserved():
        drop(experts_view(subject), [5])
        assert len(mlp.gate.weight) == 6
    after = copy_weights(model)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_types_are_kept() -> None:
    """A router in float32 beside experts in bfloat16 comes back to the bit."""
    model = tiny_mixtral()
    for layer in model.model.layers:
        layer.mlp.experts.bfloat16()
    before = copy_weights(model)
    subject = PrunableModel(model, units="experts")
    with subject.preserved():
        drop(experts_view(subject), [0])
    for name, value in copy_weights(model).items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])


def test_an_experts_own_forward() -> None:
    experts = tiny_mixtral().model.layers[0].mlp.experts
    tokens = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(0))
    gate, up = (tokens @ experts.gate_up_proj[4].T).chunk(2, dim=1)
    expected = (nn.functional.silu(gate) * up) @ experts.down_proj[4].T
    assert_close(find_bank(experts).outputs(4, tokens), expected)


def test_saved_and_loaded(family: str, tokens: Tensor, tmp_path: Path) -> None:
    model = MODELS[family]()
    before = model.config.to_dict()
    subject = PrunableModel(model, units="experts")
    assert prepare_for_saving(subject) is model
    for number, view in enumerate(subject.views.values()):
        drop(view, [1, 3 + number])  # type: ignore[arg-type]
    made = prepare_for_saving(subject)
    made.save_pretrained(tmp_path / "m")
    loaded, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", dtype=torch.float32, output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"))
    assert loaded.config.num_experts_per_tok == TOP_K[family]
    assert torch.equal(logits(loaded.eval(), tokens), logits(model, tokens))
    assert torch.equal(logits(made, tokens), logits(model, tokens))
    assert model.config.to_dict() == before


def test_blocks_that_keep_different_numbers_cannot_be_saved() -> None:
    subject = PrunableModel(tiny_mixtral(), units="experts")
    drop(experts_view(subject), [1])
    with pytest.raises(ModelError, match="between 7 and 8 experts"):
        prepare_for_saving(subject)
