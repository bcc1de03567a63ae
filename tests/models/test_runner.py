from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsity_search.models.prunable import PrunableModel
from sparsity_search.models.runner import BATCH, BlockRunner
from sparsity_search.testing.evaluator import random_tokens
from sparsity_search.testing.models import tiny_llama
from tests.families import FAMILIES


def block_outputs(subject: PrunableModel, tokens: Tensor) -> list[Tensor]:
    """Return the input of block 0 and the outputs of all blocks in one full forward pass."""
    seen: list[Tensor] = []

    def take(_: nn.Module, args: Any, output: Any) -> None:
        seen.append(output if isinstance(output, Tensor) else output[0])

    def take_input(_: nn.Module, args: Any, kwargs: Any) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    handles = [subject.blocks[0].register_forward_pre_hook(take_input, with_kwargs=True)]
    handles += [block.register_forward_hook(take) for block in subject.blocks]
    with torch.inference_mode():
        subject.model(input_ids=tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("n_rows", [1, BATCH, BATCH + 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_one_by_one_are_the_models_own(family: str, n_rows: int) -> None:
    subject = PrunableModel(FAMILIES[family]())
    tokens = random_tokens(n_rows, 16)
    runner = BlockRunner(subject, tokens)
    expected = [block_outputs(subject, batch) for batch in tokens.split(BATCH)]
    hidden = runner.embed()
    assert [len(states) for states in hidden] == [len(b) for b in tokens.split(BATCH)]
    for block in range(len(subject.blocks)):
        for states, own in zip(hidden, expected, strict=True):
            assert torch.equal(states, own[block])
        hidden = runner.run(block, hidden)
    for states, own in zip(hidden, expected, strict=True):
        assert torch.equal(states, own[-1])


def test_blocks_depend_on_what_comes_before(tiny_subject: PrunableModel) -> None:
    runner = BlockRunner(tiny_subject, random_tokens(2, 16))
    first = runner.run(0, runner.embed())
    view = tiny_subject.views["model.layers.0.mlp.down_proj"]
    view.write(view.read() * 0.5)
    assert not torch.equal(runner.run(0, runner.embed())[0], first[0])


def test_no_hook_is_left(tiny_subject: PrunableModel) -> None:
    runner = BlockRunner(tiny_subject, random_tokens(2, 16))
    runner.run(0, runner.embed())
    model = tiny_subject.model
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("broken", ["mlp", "self_attn"])
def test_no_hook_is_left_after_an_error(broken: str) -> None:
    model = tiny_llama()

    def fails(*_: object) -> None:
        raise RuntimeError("out of memory")

    handle = model.model.layers[1].get_submodule(broken).register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        BlockRunner(PrunableModel(model), random_tokens(2, 16))
    handle.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_embedding_does_not_run_the_blocks(tiny_subject: PrunableModel) -> None:
    runner = BlockRunner(tiny_subject, random_tokens(2, 16))
    calls: list[int] = []
    tiny_subject.blocks[1].register_forward_pre_hook(lambda *_: calls.append(1))
    runner.embed()
    assert calls == []
    runner.run(1, runner.embed())
    assert calls == [1]
