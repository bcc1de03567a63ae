from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsity_search.evidence.masks import apply_mask, pack_mask, write_at_bits

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_keep(dtype: torch.dtype, transposed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    tensor = (10 * torch.randn(6, 7, generator=generator)).to(dtype)
    kept = torch.rand(6, 7, generator=generator) < 0.4
    if transposed:
        tensor, kept = tensor.T, kept.T
    before = tensor.clone()
    found = apply_mask(tensor, kept)
    assert torch.equal(found, tensor.masked_fill(~kept, 0))
    assert not found.signbit()[~kept].any()
    assert torch.equal(tensor, before)


def test_keep_hides_what_is_not_finite() -> None:
    tensor = torch.tensor([torch.inf, torch.nan, -torch.inf, 1.0])
    assert apply_mask(tensor, torch.tensor([False, False, False, True])).tolist() == [0, 0, 0, 1]
    assert apply_mask(tensor, torch.tensor([True, False, True, False])).tolist() == [
        torch.inf,
        0,
        -torch.inf,
        0,
    ]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_bits(mask: list[bool]) -> None:
    bits = pack_mask(torch.tensor(mask))
    expected = [
        sum(bit << place for place, bit in enumerate(mask[i : i + 8]))
        for i in range(0, len(mask), 8)
    ]
    assert bits.tolist() == expected
    assert bits.dtype == torch.uint8
    values = torch.arange(1.0, sum(mask) + 1)
    made = torch.zeros(len(mask))
    write_at_bits(made, bits, values)
    assert made[torch.tensor(mask)].tolist() == values.tolist()
    assert int((made != 0).sum()) == sum(mask)
