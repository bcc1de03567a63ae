from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sparsity_search.errors import ConfigError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.surgery.materialise import MaterialisedShape, materialise
from sparsity_search.registry import MEASURES
from sparsity_search.testing.models import tiny_llama
from tests.helpers.families import ALL_FAMILIES

TOKENS = 16


def counted(model: torch.nn.Module) -> int:
    """Return torch's own count of one sequence; eager attention meets the whole context."""
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(1, TOKENS, dtype=torch.int64), use_cache=False)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("kind", ["width", "heads"])
@pytest.mark.parametrize("role", ["attention", "feed_forward"])
def test_equals_what_torch_counts(kind: str, role: str) -> None:
    model = tiny_llama(attn_implementation="eager", head_dim=12)
    subject = PrunableModel(model, units=kind)
    # every token meets all 16 of them, as if it were the last of a mean context of 16
    curves = MEASURES.create("flops", length=2 * TOKENS - 1).curves(subject)
    kept = {unit.name: torch.arange(unit.count - (unit.role == role)) for unit in subject.layout}
    smaller = materialise(
        subject, MaterialisedShape(blocks=(0, 1, 2), kept=kept, padding=0, per_block=False)
    )
    saved = sum(
        curve.saved[-1] / unit.count
        for unit, curve in zip(subject.layout, curves, strict=True)
        if unit.role == role
    )
    assert counted(model) - counted(smaller) == TOKENS * saved > 0


def test_a_block_is_the_sum_of_its_sublayers() -> None:
    model = tiny_llama()
    flops = MEASURES.create("flops")
    parts = flops.curves(PrunableModel(model, units="sublayers"))
    whole = flops.curves(PrunableModel(model, units="blocks"))
    for block, curve in enumerate(whole):
        assert curve.saved[-1] == sum(c.saved[-1] for c in parts[2 * block : 2 * block + 2])


@pytest.mark.parametrize("family", ["gpt2", "phi3"])
def test_fused_attention_meets_the_context_too(family: str) -> None:
    subject = PrunableModel(ALL_FAMILIES[family](), units="sublayers")
    short, long = (MEASURES.create("flops", length=n).curves(subject) for n in (1, 1001))
    grows = [b.saved[-1] - a.saved[-1] for a, b in zip(short, long, strict=True)]
    assert grows == [2 * 32 * 1000, 0.0] * 3  # as for four heads of 8 that are apart


def test_attention_grows_with_the_context() -> None:
    subject = PrunableModel(tiny_llama(), units="width")
    short, long = (MEASURES.create("flops", length=n).curves(subject) for n in (1, 1001))
    grows = [b.saved[-1] - a.saved[-1] for a, b in zip(short, long, strict=True)]
    # 32 query channels and 32 value channels, 1,000 tokens more, half of them in the mean
    assert grows == [2 * 64 * 1000 / 2, 0.0] * 3


def test_length_is_positive() -> None:
    with pytest.raises(ConfigError, match="length must be at least 1, not 0"):
        MEASURES.create("flops", length=0)
