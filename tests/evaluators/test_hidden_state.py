from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsity_search.errors import ConfigError, ModelError
from sparsity_search.evaluators.hidden_state import HiddenStateEvaluator
from sparsity_search.evaluators.kl_divergence import KLDivergenceEvaluator
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.registry import EVALUATORS
from sparsity_search.testing.evaluator import draw_random_tokens, scale_model
from sparsity_search.testing.models import tiny_llama
from tests.helpers.families import FAMILIES, make_family
from tests.helpers.sensitivity_oracles import block_states

TOKENS = draw_random_tokens(6, 24)


def states(model: nn.Module, block: int) -> Tensor:
    """Return what enters the next block, or the final norm, in float64."""
    found: list[Tensor] = []
    blocks = [*PrunableModel(model).blocks, norm_of(model)]
    handle = blocks[block + 1].register_forward_pre_hook(
        lambda _, args, kwargs: found.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    with torch.inference_mode():
        model(input_ids=TOKENS)
    handle.remove()
    return found[0].double()


def norm_of(model: nn.Module) -> nn.Module:
    decoder = getattr(model.base_model, "decoder", model.base_model)
    names = ("norm", "final_layer_norm", "ln_f")
    return next(getattr(decoder, name) for name in names if hasattr(decoder, name))


def errors(dense: nn.Module, model: nn.Module, block: int, *, relative: bool) -> list[float]:
    """Return the error of each row, straight from the formula."""
    before, after = states(dense, block), states(model, block)
    error = (before - after).pow(2).sum(-1).mean(-1)
    return (error / before.pow(2).sum(-1).mean(-1) if relative else error).tolist()


def weaker(family: str) -> nn.Module:
    model = FAMILIES[family]()
    for view in PrunableModel(model).views.values():
        view.write(view.read() * 0.5)
    return model


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("block", [0, 1, 2])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_error_of_one_block(family: str, block: int, relative: bool) -> None:
    dense, model = FAMILIES[family](), weaker(family)
    settings = HiddenStateEvaluator(layers=(block,), kl_weight=0, relative=relative)
    score = settings.bind(dense, TOKENS).score(model, range(6))
    expected = errors(dense, model, block, relative=relative)
    assert score.parts == pytest.approx(expected, rel=1e-4)
    assert score.value == pytest.approx(sum(expected) / 6, rel=1e-4)


@pytest.mark.parametrize("family", ["gemma3n", "deepseek_v4"])
def test_error_of_several_streams(family: str) -> None:
    """All vectors of a token count."""
    dense, model = make_family(family), make_family(family)
    for view in PrunableModel(model).views.values():
        view.write(view.read() * 0.5)

    def by_sequence(model: nn.Module) -> Tensor:
        found = block_states(PrunableModel(model), 1, TOKENS)[1]
        return found.movedim(found.shape.index(len(TOKENS)), 0)

    before, after = by_sequence(dense), by_sequence(model)
    expected = (before - after).pow(2).flatten(1).sum(1) / TOKENS.shape[1]
    settings = HiddenStateEvaluator(layers=(1,), kl_weight=0, relative=False)
    score = settings.bind(dense, TOKENS).score(model, range(6))
    assert score.parts == pytest.approx(expected.tolist(), rel=1e-4)


def test_blocks_and_divergence_add_up() -> None:
    dense, model = tiny_llama(layers=4), tiny_llama(layers=4)
    for view in PrunableModel(model).views.values():
        view.write(view.read() * 0.7)
    settings = HiddenStateEvaluator(
        layers=("first", "middle", -1), weight=(1, 2.0, 0.5), kl_weight=3
    )
    parts = settings.bind(dense, TOKENS).score(model, [4, 1]).parts
    divergences = KLDivergenceEvaluator().bind(dense, TOKENS).score(model, [4, 1]).parts
    first, middle, last = (errors(dense, model, block, relative=True) for block in (0, 2, 3))
    expected = [
        first[row] + 2 * middle[row] + 0.5 * last[row] + 3 * divergence
        for row, divergence in zip([4, 1], divergences, strict=True)
    ]
    assert parts == pytest.approx(expected, rel=1e-4)


def test_a_block_counts_once() -> None:
    dense, model = tiny_llama(layers=1), tiny_llama(layers=1)
    PrunableModel(model).blocks[0].mlp.up_proj.weight.zero_()
    thrice = HiddenStateEvaluator().bind(dense, TOKENS).score(model, range(6))
    once = HiddenStateEvaluator(layers=(0,)).bind(dense, TOKENS).score(model, range(6))
    assert thrice == once
    assert once.value > 0


def test_of_the_dense_model_is_zero() -> None:
    dense = tiny_llama()
    score = HiddenStateEvaluator().bind(dense, TOKENS).score(dense, range(6))
    assert score.parts == pytest.approx([0.0] * 6, abs=1e-6)


@pytest.mark.parametrize(
    ("layers", "ran"), [((0,), [0]), ((1, 0), [0, 1]), (("last",), [0, 1, 2])]
)
def test_the_rest_of_the_model_does_not_run(layers: tuple[Any, ...], ran: list[int]) -> None:
    dense = tiny_llama()
    proxy = HiddenStateEvaluator(layers=layers, kl_weight=0).bind(dense, TOKENS)
    calls: list[Any] = []
    for index, block in enumerate(dense.model.layers):
        block.register_forward_hook(lambda *_, index=index: calls.append(index))
    for module in (dense.model.norm, dense.lm_head):
        module.register_forward_hook(lambda *_: calls.append("head"))
    proxy.score(dense, [0])
    assert [call for call in calls if call != "head"][: len(ran)] == ran
    assert len(calls) <= len(ran) + (ran[-1] == 2)
    assert "head" not in calls


def test_no_hook_stays_when_a_block_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = tiny_llama()
    proxy = HiddenStateEvaluator().bind(dense, TOKENS)

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(dense.model.layers[1].mlp, "forward", fails)
    with pytest.raises(RuntimeError, match="broken"):
        proxy.score(dense, [0])
    assert not any(module._forward_hooks for module in dense.modules())


def test_states_stay_in_the_dtype_of_the_model() -> None:
    dense = tiny_llama(dtype=torch.bfloat16)
    kept = HiddenStateEvaluator(layers=(0, 2)).bind(dense, TOKENS)._dense.states  # type: ignore[attr-defined]
    assert list(kept) == [0, 2]
    assert {states.dtype for states in kept.values()} == {torch.bfloat16}
    assert {tuple(states.shape) for states in kept.values()} == {(6, 24, 32)}


def test_another_number_of_blocks() -> None:
    proxy = HiddenStateEvaluator().bind(tiny_llama(), TOKENS)
    with pytest.raises(ModelError, match="the model has 2, the dense one 3"):
        proxy.score(tiny_llama(layers=2), [0])


@pytest.mark.parametrize("block", [3, -4])
def test_a_block_that_is_not_there(block: int) -> None:
    with pytest.raises(ConfigError, match=f"layers has block {block}, but the model has 3"):
        HiddenStateEvaluator(layers=(block,)).bind(tiny_llama(), TOKENS)


def test_relative_error_does_not_depend_on_scale() -> None:
    dense, model = tiny_llama(), scale_model(0.8)
    scores = []
    for factor in (1.0, 100.0):
        for m in (dense, model):  # what blocks write and read, times a factor
            m.model.embed_tokens.weight *= factor
            for layer in m.model.layers:
                layer.self_attn.o_proj.weight *= factor
                layer.mlp.down_proj.weight *= factor
        scores.append(
            HiddenStateEvaluator(kl_weight=0).bind(dense, TOKENS).score(model, range(6)).value
        )
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ()}, "layers must be a list"),
        ({"layers": "first"}, "layers: must be a valid list"),
        ({"layers": ("median",)}, "not 'median'"),
        ({"layers": (True,)}, "not True"),
        ({"layers": (0.5,)}, "not 0.5"),
        ({"weight": 0}, "weight must be positive"),
        ({"weight": (1.0, math.inf, 1.0)}, "weight.*must be a finite number"),
        ({"weight": (1.0,)}, "weight needs one number, or 3"),
        ({"kl_weight": -0.1}, "kl_weight must not be negative"),
        ({"kl_weight": math.nan}, "kl_weight: must be a finite number"),
        ({"chunk": 0}, "chunk at least 1"),
    ],
)
def test_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EVALUATORS.create("hidden_state", **settings)
