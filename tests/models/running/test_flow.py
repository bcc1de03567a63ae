from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from sparsity_search.config.load import load_config
from sparsity_search.errors import ModelError
from sparsity_search.models.io.saving import save_checkpoint
from sparsity_search.models.running.flow import trace_flow
from sparsity_search.testing.families import Family
from sparsity_search.testing.models import tiny_llama, tiny_tokenizer
from sparsity_search.workflow.inspect import inspect

#: Calls all blocks in its own way, and returns what the head reads.
Decode = Callable[[nn.ModuleList, Tensor], Tensor]


class Block(nn.Module):
    """Returns what ``form`` makes of its output and of ``more``."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, states: Tensor, more: Any = None, form: Any = None) -> Any:
        output = states + self.linear(states)
        return output if form is None else form(output, more)


class Toy(nn.Module):
    def __init__(self, decode: Decode) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(16, 4), nn.Linear(4, 16)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.decode = decode

    @property
    def base_model(self) -> nn.Module:
        return self

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: Tensor, use_cache: bool) -> Tensor:
        logits: Tensor = self.head(self.decode(self.blocks, self.embedding(input_ids)))
        return logits


def in_a_chain(blocks: nn.ModuleList, states: Tensor) -> Tensor:
    for block in blocks:
        states = block(states.clone(), more=states.shape)
    return states


def with_more_parts(blocks: nn.ModuleList, states: Tensor) -> Tensor:
    """The second part is none for a short text."""
    more = None
    for block in blocks:
        states, more = block(
            states, more, form=lambda output, _: (output, output if len(output[0]) > 8 else None)
        )
    return states


@pytest.mark.parametrize(
    ("decode", "wires"),
    [(in_a_chain, {0: 0}), (with_more_parts, {0: 0, 1: 1})],
)
def test_what_passes_from_block_to_block(decode: Decode, wires: dict[Any, int]) -> None:
    model = Toy(decode)
    flow = trace_flow(model, model.blocks)
    assert list(flow.wires) == [{0: 0}, wires, wires]
    assert flow.streams == 1
    assert not any("forward" in block.__dict__ for block in model.blocks)


def twice(blocks: nn.ModuleList, states: Tensor) -> Tensor:
    return in_a_chain(blocks, in_a_chain(blocks, states))


def around_a_block(blocks: nn.ModuleList, states: Tensor) -> Tensor:
    first = blocks[0](states)
    return torch.as_tensor(blocks[2](blocks[1](first) + first))


def halved_between(blocks: nn.ModuleList, states: Tensor) -> Tensor:
    return torch.as_tensor(blocks[2](blocks[1](blocks[0](states) / 2)))


def with_a_mean(blocks: nn.ModuleList, states: Tensor) -> Tensor:
    for block in blocks:
        states = block(states, more=(1, states.mean()))
    return states


def summed(blocks: nn.ModuleList, states: Tensor) -> Tensor:
    first = blocks[1](blocks[0](states))
    return first + torch.as_tensor(blocks[2](first))


def with_a_cache(blocks: nn.ModuleList, states: Tensor) -> Tensor:
    for block in blocks:
        states = block(states, more=DynamicCache())
    return states


def in_dictionaries(blocks: nn.ModuleList, states: Tensor) -> Tensor:
    for block in blocks:
        states = block(states, form=lambda output, _: {"states": output})["states"]
    return states


@pytest.mark.parametrize(
    ("decode", "message"),
    [
        (twice, r"a pass runs its 3 blocks in the order \[0, 1, 2, 0, 1, 2\]"),
        (around_a_block, "argument 1 of block 2 depends on the blocks before in an unknown way"),
        (halved_between, "argument 1 of block 1 depends on the blocks before"),
        (with_a_mean, "more of block 1 depends on the blocks before"),
        (summed, "its output depends on more than that of the last block"),
        (with_a_cache, "block 0 keeps state in more"),
        (in_dictionaries, "block 0 returns dict"),
    ],
)
def test_refused(decode: Decode, message: str) -> None:
    model = Toy(decode)
    with pytest.raises(ModelError, match=f"Toy cannot be run block by block: {message}"):
        trace_flow(model, model.blocks)
    assert not any("forward" in block.__dict__ for block in model.blocks)


def test_weights_that_are_not_finite_are_no_dependence() -> None:
    model = tiny_llama()
    model.model.norm.weight.fill_(torch.nan)
    assert trace_flow(model, model.model.layers).streams == 1


def test_inspection_refuses_what_pruning_would(tmp_path: Path) -> None:
    """RWKV halves its hidden states after every six blocks."""
    shape = {"vocab_size": 128, "hidden_size": 16, "num_hidden_layers": 8}
    save_checkpoint(Family("RWKV", "RwkvForCausalLM", shape).make(), tiny_tokenizer(), tmp_path)
    config = load_config(None, {"model.name": str(tmp_path), "model.device": "cpu"})
    with pytest.raises(ModelError, match="of block 6 depends on the blocks before"):
        inspect(config)
