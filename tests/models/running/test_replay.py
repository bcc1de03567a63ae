from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsity_search.evidence.statistics import Statistic
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running import walk as walking
from sparsity_search.models.running.replay import watch_closings
from sparsity_search.models.running.runner import BlockRunner
from sparsity_search.models.running.walk import walk
from sparsity_search.profiles.budget import Budget
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.registry import PRUNERS
from sparsity_search.testing.evaluator import draw_random_tokens
from sparsity_search.testing.models import tiny_llama, tiny_mixtral
from tests.helpers.families import ALL_FAMILIES, UNUSUAL, make_family


def prune(family: str, tokens: Tensor) -> dict[str, Tensor]:
    subject = PrunableModel(make_family(family))
    pruner = PRUNERS.create("sparsegpt")
    prune_sequentially(subject, Budget(0.5).uniform(subject.layout), pruner, tokens)
    return dict(subject.snapshot())


@contextmanager
def watch_nothing(*_: object) -> Any:
    yield []


@pytest.mark.parametrize("family", [*ALL_FAMILIES, *UNUSUAL])
def test_weights_are_the_same_to_the_bit(
    family: str, tiny_tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    replayed = prune(family, tiny_tokens)
    monkeypatch.setattr(walking, "watch_closings", watch_nothing)
    expected = prune(family, tiny_tokens)
    assert replayed.keys() == expected.keys()
    assert all(torch.equal(replayed[name], expected[name]) for name in expected)


def count_calls(subject: PrunableModel, tokens: Tensor, names: Sequence[str]) -> list[int]:
    """Return how often modules of the first block run while it is walked, in batches."""
    calls: Counter[str] = Counter()
    assert subject.flow  # runs the model once
    for name in names:
        module = subject.blocks[0].get_submodule(name)
        module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    for visit in walk(subject, tokens, Statistic.NORM, rewritten=True, refresh="layer"):
        if visit.block:
            break
    n = len(BlockRunner(subject, tokens).batches)
    assert n > 1
    # one run of the first batch shows which layers read one tensor
    return [(calls[name] - 1) // n for name in names]


def test_an_attention_does_not_run_again_once_it_is_rewritten() -> None:
    """Runs for q, o, gate and down end early; the last one is for the next block."""
    layers = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    layers += [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    found = count_calls(PrunableModel(tiny_llama()), draw_random_tokens(40, 16), layers)
    # runs for the statistics of several layers end before the last of them
    assert found == [2, 2, 1, 3, 3, 2, 1]


class ReadsItsOutput(nn.Module):
    """An attention with a layer that reads what it returns."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention, self.extra = attention, nn.Linear(32, 8, bias=False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.attention(*args, **kwargs)
        self.extra(output[0])
        return output


@pytest.mark.parametrize("case", ["structures", "mixture", "layer behind it"])
def test_an_attention_runs_again_where_it_must(case: str) -> None:
    """Structures have several layers; experts are rewritten at the end, and may come before."""
    model: Any = tiny_mixtral() if case == "mixture" else tiny_llama()
    name = "self_attn.q_proj"
    if case == "layer behind it":
        name, block = "self_attn.attention.q_proj", model.model.layers[0]
        block.self_attn = ReadsItsOutput(block.self_attn)
    subject = PrunableModel(model, units="width" if case == "structures" else "weights")
    expected = {"structures": 3, "mixture": 4, "layer behind it": 6}
    assert count_calls(subject, draw_random_tokens(40, 16), [name]) == [expected[case]]


class Around(nn.Module):
    """A submodule around a layer, which returns what a function makes of its output."""

    def __init__(self, change: Callable[[Tensor], Any], times: int = 1) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.change, self.times = change, times

    def forward(self, inputs: Tensor) -> Any:
        for _ in range(self.times):
            output = self.layer(inputs)
        return self.change(output)


@pytest.mark.parametrize(
    ("around", "closes"),
    [
        (Around(lambda output: output), True),
        (Around(lambda output: (output, None)), True),
        (Around(lambda output: (output, output.sum())), False),
        (Around(lambda output: [output]), False),
        (Around(lambda output: output + 0), False),
        (Around(lambda output: output.mul_(0.3)), False),
        (Around(lambda output: output, times=2), False),
    ],
)
def test_which_submodules_return_what_a_layer_puts_out(around: Around, closes: bool) -> None:
    block = nn.Sequential(around)
    with torch.no_grad(), watch_closings(block, [around.layer]) as closings:
        expected = block(torch.ones(2, 3))
    assert [closing.module for closing in closings] == [around] * closes
    for closing in closings:
        found = closing.arrange(around.layer(torch.ones(2, 3)))
        assert type(found) is type(expected)
        torch.testing.assert_close(found, expected)


def test_hooks_of_others_are_not_left_out() -> None:
    """A change of the inputs was made twice: when they were kept, and when they were used."""
    around = Around(lambda output: output)
    around.layer.register_forward_pre_hook(lambda _, args: (2 * args[0],))
    with torch.no_grad(), watch_closings(nn.Sequential(around), [around.layer]) as closings:
        around(torch.ones(2, 3))
    assert not closings


def test_the_outermost_submodule_counts() -> None:
    inner = Around(lambda output: output)
    outer = nn.Sequential(inner)
    with watch_closings(nn.Sequential(outer, nn.ReLU()), [inner.layer]) as closings:
        nn.Sequential(outer, nn.ReLU())(torch.ones(1, 3))
    assert [closing.module for closing in closings] == [outer]
