"""What the tests of BESA and of its training share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparsity_search.allocators.besa.block_training import (
    MaskedBlock,
)
from sparsity_search.evidence.statistics import InputStatistics, Statistic
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.anatomy.views import LinearView
from sparsity_search.models.running.stream import Part, Stream
from sparsity_search.testing.models import tiny_llama


def subject_of(layers: int = 2, exclude: str | None = None, **config: Any) -> PrunableModel:
    return PrunableModel(tiny_llama(layers=layers, **config), exclude)


def linear_block(
    weight: Tensor, tokens: int = 40
) -> tuple[MaskedBlock, list[Stream], list[Stream]]:
    """Return a block that is one linear, inputs of two sequences, and the outputs wanted."""
    linear = nn.Linear(weight.shape[1], len(weight), bias=False)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    source = torch.Generator().manual_seed(3)
    states = [torch.randn(1, tokens, weight.shape[1], generator=source) for _ in range(2)]
    statistics = InputStatistics(weight.shape[1], Statistic.NORM)
    for part in states:
        statistics.add(part)
    block = MaskedBlock(0, linear, {"a": LinearView(linear)}, {"a": statistics})
    streams = [Stream((1, tokens), [{0: Part(0)}], part) for part in states]
    return block, streams, [stream.call(0, linear) for stream in streams]


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))
