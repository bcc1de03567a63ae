from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import pytest
from torch import Tensor

from sparsity_search.allocators.bases.depth import empty_units
from sparsity_search.allocators.block_perplexity import BlockPerplexityAllocator
from sparsity_search.allocators.sleb import SLEBAllocator
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.testing.evaluator import sample_text
from sparsity_search.testing.models import tiny_llama
from tests.helpers.depth_models import loss_of, removed_by, shorter


def greedy(
    subject: PrunableModel, tokens: Tensor, among: Sequence[int], n: int, gone: Sequence[int] = ()
) -> list[int]:
    """Return blocks in greedy order, by the losses of models that really lack them."""
    order = list(gone)
    while len(order) < n:
        rest = [i for i in among if i not in order]
        order.append(min(rest, key=lambda i: loss_of(shorter(subject.model, {*order, i}), tokens)))
    return order


@pytest.fixture
def subject() -> PrunableModel:
    return PrunableModel(tiny_llama(layers=6, seed=3), units="blocks")


@pytest.fixture
def text(subject: PrunableModel) -> Tensor:
    return sample_text(subject.model, 4, 16)


def test_is_exhaustive_greedy_search(subject: PrunableModel, text: Tensor) -> None:
    order = greedy(subject, text, range(6), 4)
    for n in (1, 2, 4):
        assert removed_by(SLEBAllocator(barrier=0), subject, text, n) == sorted(order[:n])


def test_sees_what_went_before() -> None:
    """In this model the losses of the dense model alone lead elsewhere."""
    subject = PrunableModel(tiny_llama(layers=5, seed=7), units="blocks")
    text = sample_text(subject.model, 4, 12)
    found = removed_by(SLEBAllocator(barrier=0), subject, text, 2)
    assert found == sorted(greedy(subject, text, range(5), 2))
    assert found != removed_by(BlockPerplexityAllocator(), subject, text, 2)


def test_sublayers(tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama(), units="sublayers")
    layout, left, gone = subject.layout, Budget(0.6).n_removed(subject.layout), list[int]()
    while rest := [i for i in range(6) if i not in gone and layout.costs[i] <= left]:
        losses = {}
        for i in rest:
            with ExitStack() as stack:
                for name in [layout[j].name for j in [*gone, i]]:
                    stack.enter_context(empty_units(subject, name))
                losses[i] = loss_of(subject.model, tiny_tokens)
        gone.append(min(rest, key=lambda i: losses[i]))
        left -= int(layout.costs[gone[-1]])
    profile = SLEBAllocator(barrier=0).allocate(
        subject, tiny_tokens, Budget(0.6), Bounds.of(layout)
    )
    assert np.flatnonzero(profile.removed).tolist() == sorted(gone)


@pytest.mark.parametrize("barrier", [1, 2])
def test_barrier(subject: PrunableModel, text: Tensor, barrier: int) -> None:
    inner = range(barrier, 6 - barrier)
    order = greedy(subject, text, inner, len(inner))
    for n in range(1, len(inner) + 1):
        assert removed_by(SLEBAllocator(barrier=barrier), subject, text, n) == sorted(order[:n])
    more = greedy(subject, text, range(6), len(inner) + 1, order)
    assert removed_by(SLEBAllocator(barrier=barrier), subject, text, len(inner) + 1) == sorted(
        more
    )
    assert SLEBAllocator() == SLEBAllocator(barrier=1)


def test_what_must_go_is_gone_from_the_first_step() -> None:
    """In this model the next one to go would be another if it were still there."""
    subject = PrunableModel(tiny_llama(layers=5, seed=3), units="blocks")
    text = sample_text(subject.model, 4, 12)
    dense = greedy(subject, text, range(5), 1)
    for forced in (0, 2):
        lower = np.zeros(5, dtype=np.int64)
        lower[forced] = 1
        bounds = Bounds(lower=lower, upper=np.ones(5, dtype=np.int64))
        expected = sorted(greedy(subject, text, range(5), 2, [forced]))
        assert expected != sorted([forced, *dense])
        assert removed_by(SLEBAllocator(barrier=0), subject, text, 2, bounds) == expected


def test_sequences(subject: PrunableModel, text: Tensor) -> None:
    order = greedy(subject, text[:1], range(6), 3)
    assert removed_by(SLEBAllocator(barrier=0, sequences=1), subject, text, 3) == sorted(order)
