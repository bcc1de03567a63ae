from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsity_search.evaluators.hidden_state import HiddenStateEvaluator
from sparsity_search.evaluators.kl_divergence import KLDivergenceEvaluator
from sparsity_search.interfaces.evaluator import Evaluator
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.head import compute_last_hidden
from sparsity_search.models.running.prefix_cache import PrefixCache
from sparsity_search.testing.evaluator import draw_random_tokens
from sparsity_search.testing.models import tiny_llama
from tests.helpers.families import ALL_FAMILIES, UNUSUAL, make_family

PLENTY = 2**24
States = tuple[int, ...]


class Candidates:
    """A model whose blocks have a few states each, and what runs in it.

    State ``s`` of a block scales its units by ``1 + s / 8``.
    """

    def __init__(self, subject: PrunableModel) -> None:
        self.subject = subject
        self.runs: list[int] = []
        self._dense = {name: view.read().clone() for name, view in subject.views.items()}
        for index, block in enumerate(subject.blocks):
            inner = next(m for m in block.modules() if m is not block and list(m.parameters()))
            inner.register_forward_pre_hook(lambda *_, i=index: self.runs.append(i))

    def switch(self, states: States) -> list[int]:
        """Set the blocks' states, and return those of all units."""
        found = []
        for unit in self.subject.layout:
            scale = 1 + states[unit.block] / 8
            self.subject.views[unit.name].write(self._dense[unit.name] * scale)
            found.append(states[unit.block])
        return found


@torch.inference_mode()
def hidden(
    candidates: Candidates, prefixes: PrefixCache, states: States, tokens: Tensor
) -> Tensor:
    with prefixes.at(candidates.switch(states)) as model:
        return compute_last_hidden(model, tokens).clone()


def random_states(n_blocks: int, n: int) -> list[States]:
    """Return states that often begin alike, in order."""
    rng = np.random.default_rng(0)
    return sorted(tuple(map(int, rng.integers(0, 2, n_blocks))) for _ in range(n))


@contextmanager
def watched(candidates: Candidates, block: int) -> Iterator[list[Tensor]]:
    found: list[Tensor] = []

    def keep(_: object, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
        found.append((output if isinstance(output, Tensor) else output[0]).clone())

    handle = candidates.subject.blocks[block].register_forward_hook(keep)
    yield found
    handle.remove()


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_every_family_gives_the_same(family: str) -> None:
    assert_gives_the_same(PrunableModel(make_family(family)))


@pytest.mark.parametrize("family", UNUSUAL)
def test_unusual_families_give_the_same(family: str) -> None:
    assert_gives_the_same(PrunableModel(make_family(family)))


def assert_gives_the_same(subject: PrunableModel) -> None:
    candidates, n_blocks = Candidates(subject), len(subject.blocks)
    whole, skipping = (PrefixCache(candidates.subject, limit) for limit in (0, PLENTY))
    texts = [draw_random_tokens(2, 12), draw_random_tokens(3, 12)]
    ran = {0: 0, PLENTY: 0}
    for states in random_states(n_blocks, 8):
        for text in texts:
            expected = hidden(candidates, whole, states, text)
            ran[0] += len(candidates.runs)
            candidates.runs.clear()
            assert torch.equal(hidden(candidates, skipping, states, text), expected)
            ran[PLENTY] += len(candidates.runs)
            candidates.runs.clear()
    assert ran[PLENTY] < 0.8 * ran[0]


def n_nodes(path: Sequence[States]) -> int:
    """Return how many beginnings differ from those of the candidate before."""
    first = len(path[0])
    same = [
        next(
            (i for i, pair in enumerate(zip(one, other, strict=True)) if len(set(pair)) > 1), None
        )
        for one, other in pairwise(path)
    ]
    return first + sum(first - (first if i is None else i) for i in same)


@given(st.lists(st.tuples(*[st.integers(0, 2)] * 4), min_size=1, max_size=6))
def test_each_node_of_the_tree_runs_once(path: list[States]) -> None:
    candidates = LLAMA
    candidates.runs.clear()
    prefixes, text = PrefixCache(candidates.subject, PLENTY), draw_random_tokens(1, 8)
    for states in path:
        hidden(candidates, prefixes, states, text)
    assert len(candidates.runs) == n_nodes(path)
    every_beginning = {p[: i + 1] for p in path for i in range(4)}
    candidates.runs.clear()
    prefixes = PrefixCache(candidates.subject, PLENTY)
    for states in sorted(path):
        hidden(candidates, prefixes, states, text)
    assert len(candidates.runs) == len(every_beginning)


LLAMA = Candidates(PrunableModel(tiny_llama(layers=4)))
#: Of one block's output for one sequence of 8 tokens, float32.
SIZE = 8 * 32 * 4


@pytest.mark.parametrize(
    ("limit", "runs"),
    [
        (0, [0, 1, 2, 3]),
        (SIZE - 1, [0, 1, 2, 3]),
        (SIZE, [0, 1, 2, 3]),  # the last one's alone
        (2 * SIZE, [2, 3]),  # every second
        (4 * SIZE, [3]),
    ],
)
def test_less_memory_skips_less(limit: int, runs: list[int]) -> None:
    prefixes, text = PrefixCache(LLAMA.subject, limit), draw_random_tokens(1, 8)
    hidden(LLAMA, prefixes, (0, 0, 0, 0), text)
    LLAMA.runs.clear()
    hidden(LLAMA, prefixes, (0, 0, 0, 1), text)
    assert LLAMA.runs == runs
    assert prefixes.used <= limit


def kept(prefixes: PrefixCache) -> int:
    """Return the bytes of all outputs."""
    return sum(o.nbytes for path in prefixes._paths.values() for o in path.outputs.values())


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 12])
def test_the_bound_holds_with_many_texts(size: int) -> None:
    whole, prefixes = PrefixCache(LLAMA.subject, 0), PrefixCache(LLAMA.subject, size * SIZE)
    for states in random_states(4, 6):
        for seed in range(3):
            text = draw_random_tokens(1, 8, seed=seed)
            found = hidden(LLAMA, prefixes, states, text)
            assert torch.equal(found, hidden(LLAMA, whole, states, text))
            assert prefixes.used == kept(prefixes) <= size * SIZE


def test_the_text_used_longest_ago_goes_first() -> None:
    prefixes = PrefixCache(LLAMA.subject, 8 * SIZE)
    one, two, three = (draw_random_tokens(1, 8, seed=seed) for seed in range(3))
    for text in (one, two, one, three):
        hidden(LLAMA, prefixes, (0, 0, 0, 0), text)
    LLAMA.runs.clear()
    hidden(LLAMA, prefixes, (0, 0, 0, 0), one)
    assert LLAMA.runs == []
    hidden(LLAMA, prefixes, (0, 0, 0, 0), two)
    assert LLAMA.runs == [0, 1, 2, 3]


@pytest.mark.parametrize("limit", [SIZE, 2 * SIZE, 3 * SIZE, PLENTY])
@pytest.mark.parametrize("block", range(4))
def test_outputs_that_are_looked_at_are_right(limit: int, block: int) -> None:
    whole, prefixes = PrefixCache(LLAMA.subject, 0), PrefixCache(LLAMA.subject, limit)
    text = draw_random_tokens(1, 8)
    for states in [(0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 1, 1), (0, 0, 1, 1), (1, 0, 1, 1)]:
        with watched(LLAMA, block) as expected:
            hidden(LLAMA, whole, states, text)
        with watched(LLAMA, block) as found:
            hidden(LLAMA, prefixes, states, text)
        assert torch.equal(found[0], expected[0])
        assert prefixes.used == kept(prefixes) <= limit
        hidden(LLAMA, prefixes, states, text)


@pytest.mark.parametrize("limit", [SIZE, 2 * SIZE, PLENTY])
@pytest.mark.parametrize("block", range(4))
def test_somebody_looks_only_later(limit: int, block: int) -> None:
    whole, prefixes = PrefixCache(LLAMA.subject, 0), PrefixCache(LLAMA.subject, limit)
    states, text = (0, 1, 0, 1), draw_random_tokens(1, 8)
    hidden(LLAMA, prefixes, states, text)
    with watched(LLAMA, block) as expected:
        hidden(LLAMA, whole, states, text)
    with watched(LLAMA, block) as found:
        hidden(LLAMA, prefixes, states, text)
    assert torch.equal(found[0], expected[0])
    assert prefixes.used == kept(prefixes) <= limit


@pytest.mark.parametrize(
    "evaluator",
    [
        KLDivergenceEvaluator(),
        HiddenStateEvaluator(layers=("first", 1, "last")),
        HiddenStateEvaluator(layers=("first", 2), kl_weight=0),
    ],
)
@pytest.mark.parametrize("limit", [5 * SIZE, PLENTY])
def test_evaluators_score_the_same(evaluator: Evaluator, limit: int) -> None:
    candidates = Candidates(PrunableModel(tiny_llama(layers=4)))
    proxy = evaluator.bind(candidates.subject.model, draw_random_tokens(4, 8))
    whole, prefixes = (PrefixCache(candidates.subject, size) for size in (0, limit))
    for states in random_states(4, 8):
        for rows in ([0], [1, 2, 3]):
            with whole.at(candidates.switch(states)) as model:
                expected = proxy.score(model, rows)
            with prefixes.at(candidates.switch(states)) as model:
                assert proxy.score(model, rows) == expected


def test_a_mask_is_part_of_the_text() -> None:
    candidates = Candidates(PrunableModel(tiny_llama(layers=4)))
    prefixes, text = PrefixCache(candidates.subject, PLENTY), draw_random_tokens(1, 8)
    masks = [torch.ones(1, 8, dtype=torch.int64) for _ in range(2)]
    masks[1][0, :3] = 0
    with torch.inference_mode(), prefixes.at(candidates.switch((0,) * 4)) as model:
        found = [model(input_ids=text, attention_mask=mask).logits for mask in masks * 2]
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])
    assert not torch.equal(found[0], found[1])


def test_nothing_stays_in_the_model() -> None:
    model = tiny_llama(layers=4)
    candidates = Candidates(PrunableModel(model))
    prefixes = PrefixCache(candidates.subject, PLENTY)
    with pytest.raises(ZeroDivisionError), prefixes.at(candidates.switch((0,) * 4)):
        _ = 1 / 0
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert not model.base_model._forward_pre_hooks
