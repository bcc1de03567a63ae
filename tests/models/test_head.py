from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from sparsity_search.errors import ModelError
from sparsity_search.models.head import check_head, divergence, last_hidden, logits
from sparsity_search.testing.models import tiny_llama
from tests.families import ALL_FAMILIES, FAMILIES


@pytest.mark.parametrize("family", ALL_FAMILIES)
@torch.inference_mode()
def test_logits_are_the_models_own(family: str, tiny_tokens: Tensor) -> None:
    model: Any = ALL_FAMILIES[family]()
    own = model(input_ids=tiny_tokens, use_cache=False).logits
    hidden = last_hidden(model, tiny_tokens)
    assert hidden.shape == (*tiny_tokens.shape, model.get_output_embeddings().in_features)
    torch.testing.assert_close(logits(model, hidden), own)
    torch.testing.assert_close(logits(model, hidden[2, 5:9]), own[2, 5:9])
    check_head(model, tiny_tokens)


@pytest.mark.parametrize("family", ["cohere", "gemma3", "granite", "falcon_h1"])
def test_logits_are_more_than_the_head_in_these(family: str, tiny_tokens: Tensor) -> None:
    model = ALL_FAMILIES[family]()
    hidden = last_hidden(model, tiny_tokens)
    assert not torch.allclose(logits(model, hidden), model.lm_head(hidden), rtol=0.1)


def test_dtype_is_the_models(tiny_tokens: Tensor) -> None:
    model = tiny_llama(dtype=torch.bfloat16)
    assert logits(model, last_hidden(model, tiny_tokens)).dtype == torch.bfloat16


def test_a_head_that_is_not_understood() -> None:
    class Strange(LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 1.5
            return output

    strange = Strange(tiny_llama().config).eval()
    with torch.no_grad():
        strange.load_state_dict(tiny_llama().state_dict())
    with pytest.raises(ModelError, match="head of Strange is not understood"):
        check_head(strange, torch.arange(12).view(1, 12))


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("chunk", [1, 7, 160, 256])
def test_divergence(family: str, chunk: int, tiny_tokens: Tensor) -> None:
    model = FAMILIES[family]()
    dense = last_hidden(model, tiny_tokens)
    pruned = dense + torch.randn(dense.shape, generator=torch.Generator().manual_seed(0))
    p, q = (logits(model, states).double().log_softmax(-1) for states in (dense, pruned))
    expected = nn.functional.kl_div(q, p, reduction="sum", log_target=True)
    found = divergence(model, dense, pruned, chunk)
    assert found == pytest.approx(float(expected), rel=1e-5)
    assert found > 1
    part = divergence(model, dense[3, 4:9], pruned[3, 4:9], chunk)
    expected = nn.functional.kl_div(q[3, 4:9], p[3, 4:9], reduction="sum", log_target=True)
    assert part == pytest.approx(float(expected), rel=1e-4)


def test_divergence_from_itself_and_from_nonsense(tiny_tokens: Tensor) -> None:
    model = tiny_llama()
    hidden = last_hidden(model, tiny_tokens)
    assert divergence(model, hidden, hidden) == 0
    assert divergence(model, hidden, hidden + 1e-6 * hidden.sin()) >= 0
    assert math.isnan(divergence(model, hidden, hidden * math.nan))
