from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from sparsity_search.errors import ModelError
from sparsity_search.models.running import head
from sparsity_search.models.running.head import (
    check_head,
    compute_divergence,
    compute_last_hidden,
    compute_logit_tiles,
    compute_logits,
    compute_loss,
)
from sparsity_search.testing.models import tiny_llama
from tests.helpers.families import ALL_FAMILIES, FAMILIES, UNUSUAL, make_family


@pytest.mark.parametrize("family", ALL_FAMILIES)
@torch.inference_mode()
def test_logits_are_the_models_own(family: str, tiny_tokens: Tensor) -> None:
    model: Any = ALL_FAMILIES[family]()
    own = model(input_ids=tiny_tokens, use_cache=False).logits
    hidden = compute_last_hidden(model, tiny_tokens)
    assert hidden.shape == (*tiny_tokens.shape, model.get_output_embeddings().in_features)
    torch.testing.assert_close(compute_logits(model, hidden), own)
    torch.testing.assert_close(compute_logits(model, hidden[2, 5:9]), own[2, 5:9])
    check_head(model, tiny_tokens)


@pytest.mark.parametrize("family", UNUSUAL)
@torch.inference_mode()
def test_logits_of_unusual_families_are_their_own(family: str, tiny_tokens: Tensor) -> None:
    model: Any = make_family(family)
    check_head(model, tiny_tokens)
    own = model(input_ids=tiny_tokens, use_cache=False).logits
    torch.testing.assert_close(compute_logits(model, compute_last_hidden(model, tiny_tokens)), own)
    head = model.get_output_embeddings()
    assert not head._forward_pre_hooks


def test_a_model_without_a_head_is_told(tiny_tokens: Tensor) -> None:
    model = tiny_llama().model  # has no base model of its own either
    with pytest.raises(ModelError, match="LlamaModel has no head that predicts tokens"):
        compute_last_hidden(model, tiny_tokens)


@pytest.mark.parametrize("family", ALL_FAMILIES)
@pytest.mark.parametrize("tile", [1, 7, 2048])
@torch.inference_mode()
def test_tiles_are_the_logits(
    family: str, tile: int, tiny_tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "TILE", tile)
    model: Any = ALL_FAMILIES[family]().bfloat16()
    hidden = compute_last_hidden(model, tiny_tokens[:1, :8]).bfloat16()  # mamba keeps float32
    made = list(compute_logit_tiles(model, hidden))
    vocabulary = model.get_output_embeddings().out_features
    assert len(made) == math.ceil(vocabulary / tile)
    assert all(part.dtype == torch.float32 for part in made)
    torch.testing.assert_close(torch.cat(made, -1), compute_logits(model, hidden).float())


def watched(model: Any) -> None:
    model.lm_head.register_forward_hook(lambda _, __, output: output + 1)


def wrapped(model: Any) -> None:
    own = model.lm_head.forward
    model.lm_head.forward = lambda states: own(states) + 1


def another(model: Any) -> None:
    class Head(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + 1

    model.lm_head.__class__ = Head


@pytest.mark.parametrize("change", [watched, wrapped, another])
@torch.inference_mode()
def test_a_head_that_does_more_is_run_whole(
    change: Any, tiny_tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "TILE", 7)
    model = tiny_llama()
    hidden = compute_last_hidden(model, tiny_tokens)
    expected = compute_logits(model, hidden) + 1
    change(model)
    (found,) = compute_logit_tiles(model, hidden)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("family", ["llama", "gemma3", "granite"])
@pytest.mark.parametrize("chunk", [1, 7, None])
@pytest.mark.parametrize("tile", [1, 7, 2048])
def test_loss(
    family: str, chunk: int | None, tile: int, tiny_tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "TILE", tile)
    model = FAMILIES[family]()
    with torch.inference_mode():
        hidden = compute_last_hidden(model, tiny_tokens)[0]
        likely = compute_logits(model, hidden).double().log_softmax(-1)
    targets = torch.arange(len(hidden)) * 5 % likely.shape[1]
    targets[:2] = torch.tensor([0, likely.shape[1] - 1])
    expected = -likely.gather(1, targets[:, None]).sum()
    torch.testing.assert_close(
        compute_loss(model, hidden, targets, chunk), expected, rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("family", ["cohere", "gemma3", "granite", "falcon_h1"])
def test_logits_are_more_than_the_head_in_these(family: str, tiny_tokens: Tensor) -> None:
    model = ALL_FAMILIES[family]()
    hidden = compute_last_hidden(model, tiny_tokens)
    assert not torch.allclose(compute_logits(model, hidden), model.lm_head(hidden), rtol=0.1)


def test_dtype_is_the_models(tiny_tokens: Tensor) -> None:
    model = tiny_llama(dtype=torch.bfloat16)
    assert compute_logits(model, compute_last_hidden(model, tiny_tokens)).dtype == torch.bfloat16


def test_a_head_that_is_not_understood() -> None:
    class Strange(LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 1.5
            return output

    strange = Strange(tiny_llama().config).eval()
    with torch.no_grad():
        strange.load_state_dict(tiny_llama().state_dict())
    with pytest.raises(ModelError, match="head of Strange is not supported"):
        check_head(strange, torch.arange(12).view(1, 12))


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("chunk", [1, 7, 160, 256])
@pytest.mark.parametrize("tile", [1, 7, 2048])
def test_divergence(
    family: str, chunk: int, tile: int, tiny_tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "TILE", tile)
    model = FAMILIES[family]()
    dense = compute_last_hidden(model, tiny_tokens)
    pruned = dense + torch.randn(dense.shape, generator=torch.Generator().manual_seed(0))
    p, q = (compute_logits(model, states).double().log_softmax(-1) for states in (dense, pruned))
    expected = nn.functional.kl_div(q, p, reduction="sum", log_target=True)
    found = compute_divergence(model, dense, pruned, chunk)
    assert found == pytest.approx(float(expected), rel=1e-5)
    assert found > 1
    part = compute_divergence(model, dense[3, 4:9], pruned[3, 4:9], chunk)
    expected = nn.functional.kl_div(q[3, 4:9], p[3, 4:9], reduction="sum", log_target=True)
    assert part == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("tile", [7, 2048])
def test_divergence_from_itself_and_from_nonsense(
    tile: int, tiny_tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "TILE", tile)
    model = tiny_llama()
    hidden = compute_last_hidden(model, tiny_tokens)
    assert compute_divergence(model, hidden, hidden) == 0
    assert compute_divergence(model, hidden, hidden + 1e-6 * hidden.sin()) >= 0
    assert math.isnan(compute_divergence(model, hidden, hidden * math.nan))
