from __future__ import annotations

from collections import Counter

import pytest

from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.anatomy.unpruned import find_shared_names, list_unpruned
from sparsity_search.testing.models import tiny_llama, tiny_mixtral
from tests.helpers.families import FAMILIES


def reasons(subject: PrunableModel) -> dict[str, int]:
    found: Counter[str] = Counter()
    for entry in list_unpruned(subject):
        found[entry.why] += entry.weights
    return dict(found)


@pytest.mark.parametrize("exclude", [None, r"\.1\."])
@pytest.mark.parametrize("family", FAMILIES)
def test_units_and_the_rest_are_the_whole_model(family: str, exclude: str | None) -> None:
    subject = PrunableModel(FAMILIES[family](), exclude)
    whole = sum(p.numel() for p in subject.model.parameters())
    assert subject.layout.n_weights + sum(reasons(subject).values()) == whole


def test_llama() -> None:
    assert reasons(PrunableModel(tiny_llama())) == {
        "embedding": 128 * 32,
        "head": 128 * 32,
        "norm": 7 * 32,
    }


def test_tied_weights_count_once() -> None:
    model = tiny_llama(tied=True)
    assert reasons(PrunableModel(model)) == {"embedding": 128 * 32, "norm": 7 * 32}
    assert find_shared_names(model) == [("model.embed_tokens.weight", "lm_head.weight")]
    assert find_shared_names(tiny_llama()) == []


def test_biases_and_excluded_units() -> None:
    model = tiny_llama(attention_bias=True, mlp_bias=True)
    found = reasons(PrunableModel(model, "down_proj"))
    assert found["bias"] == 3 * (32 + 16 + 16 + 32 + 64 + 64 + 32)
    assert found["excluded by --exclude"] == 3 * 64 * 32


def test_routers_of_mixtures() -> None:
    found = reasons(PrunableModel(tiny_mixtral(), units="width"))
    assert found["router"] == 2 * 8 * 32


def test_weights_outside_of_the_units() -> None:
    found = reasons(PrunableModel(tiny_llama(), units="heads"))
    assert found["of no unit of the kind heads"] == 3 * 2 * 16 * 32  # keys and values
    model = tiny_llama()
    model.model.projection = type(model.lm_head)(32, 4, bias=True)
    found = reasons(PrunableModel(model))
    assert found["outside of the blocks"] == 4 * 32
    assert found["bias"] == 4
