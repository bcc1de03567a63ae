from __future__ import annotations

import pytest
import torch

from sparsity_search.testing.evaluator import draw_random_tokens
from sparsity_search.testing.families import FAMILIES, Family


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    found = FAMILIES[request.param]
    if not found.is_available():
        pytest.skip(f"this release of transformers has no {found.architecture}")
    return found


@torch.inference_mode()
def test_models_run(family: Family) -> None:
    state = torch.get_rng_state()
    model, again = family.make(), family.make()
    assert torch.equal(torch.get_rng_state(), state)
    assert type(model).__name__ == family.architecture
    tokens = draw_random_tokens(2, 12)
    logits = model(input_ids=tokens, use_cache=False).logits
    assert logits.isfinite().all()
    assert torch.equal(again(input_ids=tokens, use_cache=False).logits, logits)


def test_nothing_is_constant(family: Family) -> None:
    for name, tensor in family.make().state_dict().items():
        assert tensor.numel() == 1 or len(tensor.unique()) > 1, name


def test_labels_differ() -> None:
    assert len({family.label for family in FAMILIES.values()}) == len(FAMILIES) >= 53
