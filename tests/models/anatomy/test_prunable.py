from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from sparsity_search.errors import ConfigError, ModelError, ProfileError
from sparsity_search.models.anatomy.linears import is_linear
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.anatomy.views import LinearView
from sparsity_search.profiles.profile import from_counts
from sparsity_search.testing.evaluator import copy_weights
from sparsity_search.testing.models import tiny_llama
from tests.helpers.families import FAMILIES

LLAMA_ROLES = ["q", "k", "v", "o", "gate", "up", "down"]


def test_units_of_llama(tiny_subject: PrunableModel) -> None:
    layout = tiny_subject.layout
    assert [unit.role for unit in layout] == LLAMA_ROLES * 3
    assert [unit.block for unit in layout] == [0] * 7 + [1] * 7 + [2] * 7
    assert [unit.count for unit in layout][:7] == [1024, 512, 512, 1024, 2048, 2048, 2048]
    assert {unit.cost for unit in layout} == {1}
    assert layout[7].name == "model.layers.1.self_attn.q_proj"
    assert tiny_subject.units_of(1) == list(layout[7:14])


@pytest.mark.parametrize("family", FAMILIES)
def test_units_of_other_families(family: str) -> None:
    model = FAMILIES[family]()
    subject = PrunableModel(model)
    linears = {name for name, m in model.named_modules() if is_linear(m)}
    head = {name for name in linears if model.get_submodule(name) is model.get_output_embeddings()}
    layers = {unit.name: unit.name.partition("[")[0] for unit in subject.layout}
    assert set(layers.values()) == linears - head
    assert len(subject.blocks) == subject.layout.n_blocks == 3
    for unit in subject.layout:
        assert subject.views[unit.name].module is model.get_submodule(layers[unit.name])


def test_embeddings_and_head_are_no_units(tiny_subject: PrunableModel) -> None:
    names = [unit.name for unit in tiny_subject.layout]
    assert not [name for name in names if "embed" in name or "lm_head" in name]


@pytest.mark.parametrize(
    ("exclude", "n_units"),
    [(None, 21), (r"layers\.0\.", 14), ("k_proj|v_proj", 15), (r"^model\.layers\.[01]", 7)],
)
def test_exclude(exclude: str | None, n_units: int) -> None:
    subject = PrunableModel(tiny_llama(), exclude)
    assert len(subject.layout) == len(subject.views) == n_units
    assert len(subject.blocks) == 3


def test_exclude_faults() -> None:
    with pytest.raises(ConfigError, match="matches all 21 units, such as"):
        PrunableModel(tiny_llama(), ".")
    with pytest.raises(ConfigError, match="regular expression"):
        PrunableModel(tiny_llama(), "(")
    with pytest.raises(ConfigError, match=r"'up_porj' matches none .* did you mean 'up_proj'"):
        PrunableModel(tiny_llama(), "up_porj")
    with pytest.raises(ConfigError, match=r"none of the 6 units, .*\.0\.self_attn: .*mlp"):
        PrunableModel(tiny_llama(), "q_proj", units="width")


def test_no_decoder_blocks() -> None:
    with pytest.raises(ModelError, match="no decoder blocks found in Linear"):
        PrunableModel(nn.Linear(2, 2))
    model = tiny_llama()
    text = SimpleNamespace(num_hidden_layers=5)
    model.config = SimpleNamespace(get_text_config=lambda: text)
    with pytest.raises(ModelError, match="its config says 5 layers"):
        PrunableModel(model)


def test_zeros_of_the_dense_model_are_counted() -> None:
    model = tiny_llama()
    weight = model.model.layers[1].mlp.up_proj.weight
    weight[3] = 0.0
    weight[4, :5] = -0.0
    layout = PrunableModel(model).layout
    zeros = {unit.name: unit.zeros for unit in layout if unit.zeros}
    assert zeros == {"model.layers.1.mlp.up_proj": 32 + 5}


def test_zeros_now_and_verify(tiny_subject: PrunableModel) -> None:
    nothing = from_counts(tiny_subject.layout, [0] * 21)
    tiny_subject.verify(nothing)
    name = tiny_subject.layout[9].name
    view = tiny_subject.views[name]
    view.write(view.read().masked_fill(torch.arange(32) < 3, 0))
    counts = [0] * 21
    counts[9] = 3 * 16
    assert tiny_subject.zeros() == from_counts(tiny_subject.layout, counts)
    tiny_subject.verify(tiny_subject.zeros())
    with pytest.raises(ProfileError, match=f"{name} has 48 zeros of 512, the profile says 0"):
        tiny_subject.verify(nothing)


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_preserved(tiny_subject: PrunableModel, error: type[BaseException] | None) -> None:
    before = copy_weights(tiny_subject.model)
    pointers = [p.data_ptr() for p in tiny_subject.model.parameters()]

    def change() -> None:
        with tiny_subject.preserved() as dense:
            for view in tiny_subject.views.values():
                view.write(torch.zeros_like(view.read()))
            assert tiny_subject.zeros().sparsity == 1
            for name, weight in dense.items():
                assert torch.equal(weight, before[f"{name}.weight"])
            if error:
                raise error

    if error:
        with pytest.raises(error):
            change()
    else:
        change()
    for name, weight in copy_weights(tiny_subject.model).items():
        assert torch.equal(weight, before[name])
    assert [p.data_ptr() for p in tiny_subject.model.parameters()] == pointers


def test_linear_view() -> None:
    linear = nn.Linear(3, 2)
    view = LinearView(linear)
    assert view.module is linear
    assert torch.equal(view.read(), linear.weight)
    assert not view.read().requires_grad
    new: Tensor = torch.tensor([[0.0, 1.0, -0.0], [2.0, 3.0, 4.0]])
    view.write(new)
    assert torch.equal(linear.weight, new)
    assert view.n_zeros() == 2
    new.fill_(7)
    assert view.n_zeros() == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_units_are_in_the_order_of_the_model(family: str) -> None:
    subject = PrunableModel(FAMILIES[family]())
    layers = list(dict.fromkeys(unit.name.partition("[")[0] for unit in subject.layout))
    assert layers == [name for name, _ in subject.model.named_modules() if name in layers]


def test_a_reloaded_checkpoint_has_the_mask(tiny_subject: PrunableModel, tmp_path: Path) -> None:
    for unit in tiny_subject.layout:
        view = tiny_subject.views[unit.name]
        view.write(view.read() * (torch.arange(view.read().shape[1]) % 3 > 0))
    tiny_subject.model.save_pretrained(tmp_path)
    loaded = PrunableModel(AutoModelForCausalLM.from_pretrained(tmp_path))
    for name, view in loaded.views.items():
        assert torch.equal(view.read() == 0, tiny_subject.views[name].read() == 0)
