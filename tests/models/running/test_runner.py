from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BloomConfig, BloomForCausalLM

from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running import runner as runner_module
from sparsity_search.models.running.arguments import list_parts
from sparsity_search.models.running.head import compute_last_hidden
from sparsity_search.models.running.runner import BlockRunner
from sparsity_search.models.running.stream import list_hidden
from sparsity_search.testing.evaluator import draw_random_tokens
from sparsity_search.testing.models import tiny_llama
from tests.helpers.families import FAMILIES, UNUSUAL, make_family

#: Sequences of these tests that pass at once.
BATCH = 8


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `BATCH` sequences pass at once, of 16 tokens."""
    monkeypatch.setattr(runner_module, "_CPU_TOKENS", BATCH * 16)


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
    tokens = draw_random_tokens(n_rows, 16)
    runner = BlockRunner(subject, tokens)
    expected = [block_outputs(subject, batch) for batch in tokens.split(BATCH)]
    hidden = runner.embed()
    assert [len(states) for states in list_hidden(hidden)] == [len(b) for b in runner.batches]
    for block in range(len(subject.blocks)):
        for states, own in zip(list_hidden(hidden), expected, strict=True):
            assert torch.equal(states, own[block])
        hidden = runner.run(block, hidden)
    for states, own in zip(list_hidden(hidden), expected, strict=True):
        assert torch.equal(states, own[-1])


@pytest.mark.parametrize("family", UNUSUAL)
def test_what_else_passes_between_blocks_is_the_models_own(family: str) -> None:
    subject, tokens = PrunableModel(make_family(family)), draw_random_tokens(2 * BATCH + 3, 16)
    runner, n_blocks = BlockRunner(subject, tokens), len(subject.blocks)
    embedded = runner.embed()
    for scale in (1.0, 0.5):  # of the first block, after its arguments are captured
        for unit in subject.units_of(0):
            view = subject.views[unit.name]
            view.write(view.read() * scale)
        expected = [block_outputs(subject, batch) for batch in runner.batches]
        streams = embedded
        for block in range(n_blocks):
            again = runner.run(block, streams)
            streams = runner.run(block, streams)
            for stream, other, own in zip(streams, again, expected, strict=True):
                assert torch.equal(list_parts(stream.output)[0], own[block + 1])
                assert torch.equal(other.hidden, stream.hidden)
        with torch.inference_mode():
            for states, batch in zip(runner.finish(streams), runner.batches, strict=True):
                assert torch.equal(states, compute_last_hidden(subject.model, batch))


def test_masks_are_stored_once(tiny_subject: PrunableModel) -> None:
    streams = BlockRunner(tiny_subject, draw_random_tokens(2 * BATCH, 16)).embed()
    one, other = (stream.calls[2]["position_embeddings"] for stream in streams)
    assert one[0] is other[0]


def test_blocks_depend_on_what_comes_before(tiny_subject: PrunableModel) -> None:
    runner = BlockRunner(tiny_subject, draw_random_tokens(2, 16))
    first = runner.run(0, runner.embed())[0].hidden
    view = tiny_subject.views["model.layers.0.mlp.down_proj"]
    view.write(view.read() * 0.5)
    assert not torch.equal(runner.run(0, runner.embed())[0].hidden, first)


def test_no_hook_is_left(tiny_subject: PrunableModel) -> None:
    runner = BlockRunner(tiny_subject, draw_random_tokens(2, 16))
    runner.run(0, runner.embed())
    model = tiny_subject.model
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("broken", ["mlp", "self_attn"])
def test_no_hook_is_left_after_an_error(broken: str) -> None:
    model = tiny_llama()

    def fails(*_: object) -> None:
        raise RuntimeError("out of memory")

    handle = model.model.layers[0].get_submodule(broken).register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        BlockRunner(PrunableModel(model), draw_random_tokens(2, 16))
    handle.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_few_tokens_are_run_to_learn_how_blocks_are_called(tiny_subject: PrunableModel) -> None:
    ran: list[tuple[str, int]] = []
    for name in ("layers.0", "layers.1", "norm"):
        part = tiny_subject.model.model.get_submodule(name)
        inner = part.mlp if name != "norm" else part
        inner.register_forward_hook(lambda _, args, __, n=name: ran.append((n, args[0].shape[1])))
    BlockRunner(tiny_subject, draw_random_tokens(BATCH + 3, 16))
    assert ran == [("layers.0", 8), ("layers.1", 8), ("norm", 8), ("norm", 8)]
    BlockRunner(tiny_subject, draw_random_tokens(2, 16))  # known now
    assert len(ran) == 4
    assert not any("forward" in block.__dict__ for block in tiny_subject.blocks)


def test_embedding_does_not_run_the_blocks(tiny_subject: PrunableModel) -> None:
    runner = BlockRunner(tiny_subject, draw_random_tokens(2, 16))
    calls: list[int] = []
    tiny_subject.blocks[1].register_forward_pre_hook(lambda *_: calls.append(1))
    runner.embed()
    assert calls == []
    runner.run(1, runner.embed())
    assert calls == [1]


def tiny_bloom() -> nn.Module:
    """Return a model whose blocks put out tuples."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = BloomConfig(vocab_size=128, hidden_size=32, n_layer=3, n_head=4)
        return BloomForCausalLM(shape).eval().requires_grad_(False)


@pytest.mark.parametrize("family", [*FAMILIES, "bloom"])
def test_finish_is_the_decoders_own(family: str) -> None:
    model = tiny_bloom() if family == "bloom" else FAMILIES[family]()
    subject, tokens = PrunableModel(model), draw_random_tokens(BATCH + 3, 16)
    runner = BlockRunner(subject, tokens)
    hidden = runner.embed()
    for block in range(len(subject.blocks)):
        hidden = runner.run(block, hidden)
    ended = runner.finish(hidden)
    with torch.inference_mode():
        for states, batch in zip(ended, tokens.split(BATCH), strict=True):
            assert torch.equal(states, compute_last_hidden(model, batch))
    another = runner.finish(runner.run(1, hidden))
    assert not torch.equal(another[0], ended[0])
    assert not any("forward" in block.__dict__ for block in subject.blocks)


def test_finish_leaves_the_blocks_alone(tiny_subject: PrunableModel) -> None:
    runner = BlockRunner(tiny_subject, draw_random_tokens(2, 16))
    block = tiny_subject.blocks[1]
    wrapped = block.forward  # as libraries that move weights do
    block.forward = wrapped
    norm = tiny_subject.model.model.norm

    def fails(*_: object) -> None:
        raise RuntimeError("out of memory")

    handle = norm.register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        runner.finish(runner.embed())
    handle.remove()
    assert block.forward is wrapped
    assert "forward" not in tiny_subject.blocks[0].__dict__
    assert len(runner.finish(runner.embed())) == 1
