from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsity_search.allocators.block_perplexity import BlockPerplexityAllocator
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.testing.evaluator import draw_random_tokens, sample_text
from sparsity_search.testing.models import tiny_llama
from tests.helpers.depth_models import loss_of, removed_by, shorter


@pytest.fixture
def subject() -> PrunableModel:
    return PrunableModel(tiny_llama(layers=5), units="blocks")


def brute_force(subject: PrunableModel, tokens: Tensor) -> list[int]:
    """Return the order of blocks by the loss of models that lack one of them."""
    n = len(subject.blocks)
    return np.argsort([loss_of(shorter(subject.model, {i}), tokens) for i in range(n)]).tolist()


def test_order_is_that_of_shorter_models(subject: PrunableModel) -> None:
    tokens = sample_text(subject.model, 4, 16)
    order = brute_force(subject, tokens)
    assert order != sorted(order)
    for n in range(1, 5):
        assert removed_by(BlockPerplexityAllocator(), subject, tokens, n) == sorted(order[:n])


def test_sequences(subject: PrunableModel) -> None:
    """Only the first sequences are read."""
    tokens, seen = draw_random_tokens(9, 8), list[Tensor]()
    assert subject.flow.streams == 1  # traced once, on tokens of its own
    embedding = subject.model.get_input_embeddings()
    embedding.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    found = removed_by(BlockPerplexityAllocator(sequences=2), subject, tokens, 2)
    assert max(map(len, seen)) == 2
    assert all(torch.equal(rows[0], tokens[0, : rows.shape[1]]) for rows in seen)
    assert found == removed_by(BlockPerplexityAllocator(), subject, tokens[:2], 2)


def test_ends_are_kept(subject: PrunableModel, tiny_tokens: Tensor) -> None:
    order = brute_force(subject, tiny_tokens)
    allocator = BlockPerplexityAllocator(keep_first=1, keep_last=2)
    inner = [i for i in order if i in (1, 2)]
    for n in (1, 2):
        assert removed_by(allocator, subject, tiny_tokens, n) == sorted(inner[:n])
    outer = next(i for i in order if i not in inner)
    assert removed_by(allocator, subject, tiny_tokens, 3) == sorted([*inner, outer])
