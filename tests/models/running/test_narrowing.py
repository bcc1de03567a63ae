from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from sparsity_search.errors import ModelError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.anatomy.views import StructuredView
from sparsity_search.models.io.offload import Offload
from sparsity_search.models.running import narrowing as module
from sparsity_search.models.running.narrowing import LayerNarrower
from sparsity_search.testing.models import tiny_llama
from tests.helpers.families import ALL_FAMILIES

#: OPT reshapes to its number of heads, layers of GPT-2 to their number of outputs.
FULL = {("opt", "attention"), ("gpt2", "feed_forward")}


def subject_of(family: str, kind: str) -> PrunableModel:
    try:
        return PrunableModel(ALL_FAMILIES[family](), units=kind)
    except ModelError as error:
        pytest.skip(str(error))


def structured(subject: PrunableModel, name: str) -> StructuredView:
    view = subject.views[name]
    assert isinstance(view, StructuredView)
    return view


def remove(subject: PrunableModel, seed: int, share: float = 0.5) -> dict[str, int]:
    """Empty structures of every unit, at random, and return states that say so.

    One unit keeps all of them, and one none.
    """
    random = torch.Generator().manual_seed(seed)
    whole, none = torch.randperm(len(subject.layout), generator=random)[:2].tolist()
    for index, unit in enumerate(subject.layout):
        view = subject.views[unit.name]
        weight, shape = view.read().clone(), view.structures
        if shape is None or index == whole:
            continue
        gone = torch.randperm(unit.count, generator=random)[: int(unit.count * share)]
        shape.bodies(weight)[:, slice(None) if index == none else gone] = 0
        view.write(weight)
    return {unit.name: seed for unit in subject.layout}


@torch.inference_mode()
def logits(subject: PrunableModel, tokens: Tensor) -> Tensor:
    found: Tensor = subject.model(input_ids=tokens, use_cache=False).logits
    return found


def parameters(subject: PrunableModel) -> dict[str, Tensor]:
    """Return copies of all parameters; what is none has no entry."""
    return {name: p.clone() for name, p in subject.model.named_parameters()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], of) for name, of in expected.items())


def smaller(subject: PrunableModel, full: dict[str, Tensor]) -> set[str]:
    """Return the names of parameters that have another shape now."""
    return {n for n, p in subject.model.named_parameters() if p.shape != full[n].shape}


@pytest.mark.parametrize("kind", ["width", "heads", "sublayers"])
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_outputs_are_those_of_zeros(family: str, kind: str, tiny_tokens: Tensor) -> None:
    subject = subject_of(family, kind)
    with subject.preserved() as dense:
        before, narrow = parameters(subject), LayerNarrower(subject, dense)
        with narrow.at(dict.fromkeys(subject.views)):  # tries units out
            assert_equal(parameters(subject), before)
        assert_equal(parameters(subject), before)
        for seed in range(3):
            states = remove(subject, seed)
            zeros, read = parameters(subject), {n: v.read() for n, v in subject.views.items()}
            expected = logits(subject, tiny_tokens)
            with narrow.at(states):
                assert_close(logits(subject, tiny_tokens), expected, rtol=1e-5, atol=1e-5)
            assert_equal(parameters(subject), zeros)
            assert_equal({n: v.read() for n, v in subject.views.items()}, read)


def sizes(view: StructuredView) -> list[int]:
    """Return how many weights each part's layer has, and biases if it makes structures."""
    linears = [part.linear for part in view.parts]
    biases = [p.linear.bias for p in view.parts if not p.consumer and p.linear.bias is not None]
    return [len(found.flatten()) for found in (*(linear.weight for linear in linears), *biases)]


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen2", "qwen3", "opt", "gpt2", "olmo2"])
def test_which_units_are_narrow(family: str) -> None:
    subject = subject_of(family, "width")
    with subject.preserved() as dense:
        narrow = LayerNarrower(subject, dense)
        for unit in subject.layout:
            view, weight = structured(subject, unit.name), dense[unit.name].clone()
            view.structures.bodies(weight)[:, : unit.count // 2] = 0
            view.write(weight)
            full = sizes(view)
            with narrow.at({unit.name: 0}):
                part = 1 if (family, unit.role) in FULL else 2
                assert sizes(view) == [size // part for size in full]


def widths(subject: PrunableModel, block: int = 0) -> tuple[int, int]:
    """Return the numbers of query rows and of channels of a Llama's block."""
    found: Any = subject.blocks[block]
    return len(found.self_attn.q_proj.weight), found.mlp.down_proj.weight.shape[1]


@pytest.mark.parametrize(("removed", "left"), [(7, 64), (8, 56), (15, 56), (60, 8), (64, 8)])
def test_widths_are_rounded_up(removed: int, left: int) -> None:
    subject = PrunableModel(tiny_llama(), units="width")
    unit = next(unit for unit in subject.layout if unit.role == "feed_forward")
    with subject.preserved() as dense:
        view, weight = structured(subject, unit.name), dense[unit.name].clone()
        view.structures.bodies(weight)[:, 64 - removed :] = 0
        view.write(weight)
        with LayerNarrower(subject, dense).at({unit.name: 0}):
            assert widths(subject) == (32, left)


def test_an_empty_attention_keeps_one_group(tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama(attention_bias=True), units="width")
    name = subject.layout[0].name
    with subject.preserved() as dense:
        subject.views[name].write(torch.zeros_like(dense[name]))
        expected = logits(subject, tiny_tokens)
        with LayerNarrower(subject, dense).at({name: 0}):
            assert widths(subject) == (16, 64)
            assert_close(logits(subject, tiny_tokens), expected, rtol=1e-5, atol=1e-5)


class Normed(nn.Module):
    """An activation that depends on all channels together."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.relu() / inputs.abs().mean(dim=-1, keepdim=True)


class Placed(nn.Module):
    """An activation that depends on a channel's place."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.relu() * (1 + torch.arange(inputs.shape[-1]) / 16)


@pytest.mark.parametrize("activation", [Normed, Placed])
def test_a_unit_that_would_write_something_else_keeps_its_zeros(
    activation: type[nn.Module], tiny_tokens: Tensor
) -> None:
    model: Any = tiny_llama()
    model.model.layers[1].mlp.act_fn = activation()  # any size will do for it
    subject = PrunableModel(model, units="width")
    with subject.preserved() as dense:
        narrow, states = LayerNarrower(subject, dense), {}
        for unit in subject.layout:
            view, weight = structured(subject, unit.name), dense[unit.name].clone()
            view.structures.bodies(weight)[:, : unit.count // 2] = 0
            view.write(weight)
            states[unit.name] = 0
        expected = logits(subject, tiny_tokens)
        with narrow.at(states):
            assert [widths(subject, block) for block in range(3)] == [(16, 32), (16, 64), (16, 32)]
            assert_close(logits(subject, tiny_tokens), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["width", "heads"])
def test_padded_text(kind: str, tiny_tokens: Tensor) -> None:
    """With a mask, keys are repeated for as many queries as the configuration tells."""
    subject = PrunableModel(tiny_llama(), units=kind)
    mask = torch.ones_like(tiny_tokens)
    mask[:, :3] = 0
    with subject.preserved() as dense, torch.inference_mode():
        states = remove(subject, 0)
        expected = subject.model(input_ids=tiny_tokens, attention_mask=mask).logits
        with LayerNarrower(subject, dense).at(states):
            found = subject.model(input_ids=tiny_tokens, attention_mask=mask).logits
    assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_is_no_difference(dtype: torch.dtype) -> None:
    subject = PrunableModel(tiny_llama(dtype=dtype, intermediate_size=512), units="width")
    with subject.preserved() as dense:
        states, full = remove(subject, 0, share=1.0), parameters(subject)
        with LayerNarrower(subject, dense).at(states):
            assert len(smaller(subject, full)) == 3 * (4 + 3) - 4  # one attention is whole


def test_trying_out_leaves_a_pruned_model_as_it_is() -> None:
    subject = PrunableModel(tiny_llama(), units="width")
    with subject.preserved() as dense:
        remove(subject, 0, share=1.0)
        before = parameters(subject)
        with LayerNarrower(subject, dense).at({subject.layout[0].name: 0}):
            assert len(smaller(subject, before)) == 4
        assert_equal(parameters(subject), before)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_full_sizes_return(error: type[BaseException]) -> None:
    subject = PrunableModel(tiny_llama(attention_bias=True), units="width")
    before = parameters(subject)
    own = dict(subject.model.named_parameters())

    def run() -> None:
        with subject.preserved() as dense:
            states = remove(subject, 0)
            with LayerNarrower(subject, dense).at(states):
                assert smaller(subject, before)
                raise error

    with pytest.raises(error):
        run()
    assert_equal(parameters(subject), before)
    makers = [n for n in own if n.endswith("weight") or "o_proj" not in n]
    assert all(dict(subject.model.named_parameters())[n] is own[n] for n in makers)


def test_only_changed_units_are_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    subject, made = PrunableModel(tiny_llama(), units="width"), []
    with subject.preserved() as dense:
        narrow, states = LayerNarrower(subject, dense), remove(subject, 0)
        with narrow.at(states):
            pass
        original = module._narrow

        def spy(view: StructuredView) -> Any:
            made.append(view)
            return original(view)

        monkeypatch.setattr(module, "_narrow", spy)
        with narrow.at(states):
            assert made == []
        last = subject.layout[-1].name
        with narrow.at({**states, last: 1}):
            assert made == [subject.views[last]]


def test_offloaded_models_keep_their_size(tiny_tokens: Tensor) -> None:
    model = tiny_llama()
    Offload(model, torch.device("cpu"))
    subject = PrunableModel(model, units="width")
    with subject.preserved() as dense:
        states, full = remove(subject, 0), parameters(subject)
        expected = logits(subject, tiny_tokens)
        with LayerNarrower(subject, dense).at(states):
            assert smaller(subject, full) == set()
            assert torch.equal(logits(subject, tiny_tokens), expected)


def test_single_weights_keep_their_size() -> None:
    subject = PrunableModel(tiny_llama())
    with subject.preserved() as dense:
        full = parameters(subject)
        with LayerNarrower(subject, dense).at({unit.name: 0 for unit in subject.layout}):
            assert smaller(subject, full) == set()
