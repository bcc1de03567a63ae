from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from sparsity_search.errors import ConfigError, RunMismatchError, UnknownNameError
from sparsity_search.evidence.structures import StructureLayout
from sparsity_search.evidence.variants import (
    GroupedVariants,
    RankedVariants,
    StoredVariants,
    StructuredVariants,
    Variants,
    encode_order,
    variants_from_tensors,
)

DENSE = torch.tensor([[1.0, -2.0], [3.0, -4.0]], dtype=torch.bfloat16)
RANKED = RankedVariants(counts=(1, 3), codes=torch.tensor([[0, 1], [1, 2]], dtype=torch.uint8))
PACKED = RANKED.packed()
STORED = StoredVariants.of(
    torch.tensor([[[0, -2], [3, -5]], [[0, 0], [0, -6.0]]]).bfloat16(), (1, 3)
)


@pytest.mark.parametrize(
    ("variants", "count", "expected"),
    [
        (RANKED, 1, [[0, -2], [3, -4]]),
        (RANKED, 3, [[0, 0], [0, -4]]),
        (PACKED, 1, [[0, -2], [3, -4]]),
        (PACKED, 3, [[0, 0], [0, -4]]),
        (STORED, 1, [[0, -2], [3, -5]]),
        (STORED, 3, [[0, 0], [0, -6]]),
    ],
)
def test_at(variants: Variants, count: int, expected: list[list[float]]) -> None:
    assert variants.at(DENSE, count).tolist() == expected
    assert variants.at(DENSE, count).dtype == torch.bfloat16
    assert variants.at(DENSE.double(), count).dtype == torch.float64


@pytest.mark.parametrize("variants", [RANKED, PACKED, STORED])
def test_at_gives_a_tensor_of_its_own(variants: Variants) -> None:
    kept, dense = variants.at(DENSE, 1).clone(), DENSE.clone()
    variants.at(DENSE, 1).fill_(7)
    assert torch.equal(variants.at(DENSE, 1), kept)
    assert torch.equal(DENSE, dense)


@pytest.mark.parametrize("variants", [RANKED, PACKED, STORED])
def test_round_trip(variants: Variants) -> None:
    read = variants_from_tensors(variants.kind, [1, 3], variants.tensors(), ["a note"])
    assert type(read) is type(variants)
    assert (read.counts, read.notes) == ((1, 3), ("a note",))
    assert torch.equal(read.at(DENSE, 3), variants.at(DENSE, 3))


@pytest.mark.parametrize("variants", [RANKED, PACKED, STORED])
def test_unknown_count_names_the_known(variants: Variants) -> None:
    with pytest.raises(UnknownNameError, match="1, 3"):
        variants.at(DENSE, 2)


@pytest.mark.parametrize(
    ("kind", "tensors"), [("sparse", RANKED.tensors()), ("stored", RANKED.tensors())]
)
def test_unreadable_tensors(kind: str, tensors: dict[str, Tensor]) -> None:
    with pytest.raises(RunMismatchError, match=r"from tensors \['codes'\]"):
        variants_from_tensors(kind, [1, 3], tensors)


@pytest.mark.parametrize(
    ("n_counts", "dtype"), [(1, torch.uint8), (255, torch.uint8), (256, torch.int16)]
)
def test_codes_hold_any_number_of_counts(n_counts: int, dtype: torch.dtype) -> None:
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    codes = encode_order(order, range(n_counts))
    assert codes.dtype == dtype
    variants = RankedVariants(counts=tuple(range(n_counts)), codes=codes)
    for count in range(n_counts):
        removed = variants.at(torch.ones(300), count) == 0
        assert set(removed.nonzero().flatten().tolist()) == set(order[:count].tolist())


def test_more_counts_than_codes() -> None:
    with pytest.raises(ConfigError, match="32768 levels, more than 32767"):
        encode_order(torch.arange(4), range(2**15))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    n_counts=st.integers(1, 17),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64]),
    seed=st.integers(0, 2**16),
)
def test_packed_codes_are_the_same(
    shape: tuple[int, int], n_counts: int, dtype: torch.dtype, seed: int
) -> None:
    drawn = torch.Generator().manual_seed(seed)
    dense = torch.randn(shape, generator=drawn, dtype=torch.float64).to(dtype)
    codes = torch.randint(n_counts + 1, shape, generator=drawn, dtype=torch.uint8)
    plain = RankedVariants(counts=tuple(range(n_counts)), notes=("a note",), codes=codes)
    packed = plain.packed()
    few = n_counts < 16
    assert packed.kind == ("packed" if few else "ranked")
    assert packed.tensors()["codes"].numel() == (-(-dense.numel() // 2) if few else dense.numel())
    assert (packed.counts, packed.notes) == (plain.counts, plain.notes)
    for level in range(n_counts):
        expected = dense.masked_fill(codes <= level, 0)
        for found in (plain.at(dense, level), packed.at(dense, level)):
            assert torch.equal(found, expected)
            assert not found.signbit()[codes <= level].any()
        # weights that are stored transposed are read so
        assert torch.equal(packed.at(dense.T.contiguous().T, level), expected)


def test_what_cannot_be_packed_stays() -> None:
    grouped = GroupedVariants(counts=(1,), codes=RANKED.codes)
    assert grouped.packed() is grouped
    assert STORED.packed() is STORED


def test_groups_have_exactly_their_zeros() -> None:
    dense = torch.tensor([[0.0, 0.0, 0.0, 5.0, 1.0, 2.0, 3.0, 4.0]])
    codes = torch.tensor([[0, 0, 1, 1, 0, 0, 1, 1]], dtype=torch.uint8)
    variants = GroupedVariants(counts=(4, 8), codes=codes)
    tiny = torch.finfo(torch.float32).tiny
    assert variants.at(dense, 4).tolist() == [[0, 0, tiny, 5, 0, 0, 3, 4]]
    assert variants.at(dense, 8).tolist() == [[0] * 8]
    read = variants_from_tensors(variants.kind, variants.counts, variants.tensors())
    assert isinstance(read, GroupedVariants)
    assert torch.equal(read.at(dense, 4), variants.at(dense, 4))


@pytest.mark.parametrize("changed", [(), ("consumers",), ("biases",), ("consumers", "biases")])
def test_structures(changed: tuple[str, ...]) -> None:
    shape = StructureLayout(count=3, inner=2, width=5)
    dense = torch.arange(1.0, 65.0).view(4, 16)
    removed = torch.tensor([[False, True, False], [True, True, False]])
    made = {"consumers": -torch.ones(2, 4, 6), "biases": torch.full((2, 4, 1), 9.0)}
    given = {name: made[name] for name in changed}
    variants = StructuredVariants(counts=(1, 2), structures=shape, removed=removed, **given)
    read = variants_from_tensors(variants.kind, variants.counts, variants.tensors())
    for found in (variants, read):
        pruned = found.at(dense, 1)
        bodies, before = shape.bodies(pruned), shape.bodies(dense)
        assert (bodies[:, 1] == 0).all()
        assert torch.equal(bodies[:, 2, 2:], before[:, 2, 2:])
        expected = -torch.ones(4, 2) if "consumers" in changed else before[:, 2, :2]
        assert torch.equal(bodies[:, 2, :2], expected)
        bias = torch.full((4, 1), 9.0) if "biases" in changed else dense[:, 15:]
        assert torch.equal(shape.bias(pruned), bias)
        assert shape.empty(found.at(dense, 2)).tolist() == [True, True, False]


@given(
    arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 7)),
           elements=st.sampled_from([0.0, -0.0, 1.5, -2.0, 1e-30]))
)  # fmt: skip
def test_stored_weights_return(weights: np.ndarray) -> None:
    expected = torch.from_numpy(weights)
    variants = StoredVariants.of(expected.unbind(), range(len(expected)))
    dense = torch.full_like(expected[0].T, 9.0).T  # not contiguous
    for level, weight in enumerate(expected):
        assert torch.equal(variants.at(dense, level), weight)


def test_what_a_stored_variant_takes() -> None:
    weights = torch.randn(2, 100, 160, generator=torch.Generator().manual_seed(0)).bfloat16()
    weights[0].flatten()[:8000] = 0
    weights[1].flatten()[:12000] = 0
    stored = StoredVariants.of(weights.unbind(), (8000, 12000)).tensors()
    dense = weights.nbytes
    assert sum(t.nbytes for t in stored.values()) == (0.375 + 1 / 16) * dense + 3 * 8
