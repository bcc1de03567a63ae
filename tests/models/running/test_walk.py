from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from sparsity_search.errors import ModelError
from sparsity_search.evidence.statistics import InputStatistics, Statistic
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.walk import walk
from sparsity_search.testing.models import tiny_llama
from tests.helpers.families import FAMILIES


def by_plain_hooks(subject: PrunableModel, tokens: Tensor) -> dict[str, InputStatistics]:
    """Return the statistics of every unit from full forward passes, one object a unit."""
    found: dict[str, InputStatistics] = {}
    handles = []
    for unit in subject.layout:
        view = subject.views[unit.name]
        statistics = InputStatistics(view.read().shape[1], Statistic.HESSIAN)
        found[unit.name] = statistics

        def hook(_: object, args: tuple[Tensor], statistics: InputStatistics = statistics) -> None:
            statistics.add(args[0])

        handles.append(view.module.register_forward_pre_hook(hook))
    with torch.inference_mode():
        for row in tokens:
            subject.model(input_ids=row[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def halve(subject: PrunableModel, block: int) -> None:
    """Zero half of every unit of a block."""
    for unit in subject.units_of(block):
        view = subject.views[unit.name]
        weight = view.read().clone()
        weight.view(-1)[::2] = 0
        view.write(weight)


@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_are_those_of_the_full_model(family: str, tiny_tokens: Tensor) -> None:
    subject = PrunableModel(FAMILIES[family]())
    expected = by_plain_hooks(subject, tiny_tokens)
    visits = list(walk(subject, tiny_tokens, Statistic.HESSIAN, rewritten=False))
    assert [visit.block for visit in visits] == [0, 1, 2]
    assert [unit for visit in visits for unit in visit.units] == list(subject.layout)
    for visit in visits:
        assert set(visit.statistics) == {unit.name for unit in visit.units}
        for name, statistics in visit.statistics.items():
            assert statistics.n_tokens == tiny_tokens.numel()
            assert_close(statistics.hessian(), expected[name].hessian(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_units_that_read_one_tensor_share_statistics(family: str, tiny_tokens: Tensor) -> None:
    subject = PrunableModel(FAMILIES[family]())
    for visit in walk(subject, tiny_tokens, Statistic.NORM, rewritten=False):
        owner = {unit.role: id(visit.statistics[unit.name]) for unit in visit.units}
        assert owner["q"] == owner["k"] == owner["v"]
        assert owner["gate"] == owner["up"]
        assert len(set(owner.values())) == 4


@pytest.mark.parametrize("rewritten", [True, False])
def test_what_later_blocks_see(tiny_tokens: Tensor, rewritten: bool) -> None:
    subject, other = PrunableModel(tiny_llama()), PrunableModel(tiny_llama())
    for visit in walk(subject, tiny_tokens, Statistic.HESSIAN, rewritten=rewritten):
        # its own statistics: with the blocks before it rewritten, or dense
        expected = by_plain_hooks(other, tiny_tokens)
        for name, statistics in visit.statistics.items():
            assert_close(statistics.hessian(), expected[name].hessian(), rtol=1e-4, atol=1e-6)
        halve(subject, visit.block)
        if rewritten:
            halve(other, visit.block)


def test_rewritten_blocks_matter(tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama())
    dense = by_plain_hooks(subject, tiny_tokens)["model.layers.1.self_attn.q_proj"].norms()
    halve(subject, 0)
    pruned = by_plain_hooks(subject, tiny_tokens)["model.layers.1.self_attn.q_proj"].norms()
    assert not torch.allclose(dense, pruned, rtol=1e-2)


@pytest.mark.parametrize("statistic", list(Statistic))
def test_no_more_is_gathered_than_asked_for(tiny_tokens: Tensor, statistic: Statistic) -> None:
    subject = PrunableModel(tiny_llama())
    for visit in walk(subject, tiny_tokens, statistic, rewritten=False):
        assert {found.statistic for found in visit.statistics.values()} == {statistic}


def test_blocks_without_units_are_walked_through(tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama(), r"layers\.1\.")
    visits = list(walk(subject, tiny_tokens, Statistic.NORM, rewritten=True))
    assert [len(visit.units) for visit in visits] == [7, 0, 7]
    expected = by_plain_hooks(PrunableModel(tiny_llama()), tiny_tokens)
    for name, statistics in visits[2].statistics.items():
        assert_close(statistics.norms(), expected[name].norms())


def test_no_hook_is_there_while_the_caller_works(tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama())
    walking = walk(subject, tiny_tokens, Statistic.NORM, rewritten=False)
    for _ in range(2):
        next(walking)
        model = subject.model
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    walking.close()


def test_a_layer_that_takes_no_part(tiny_tokens: Tensor) -> None:
    model = tiny_llama()
    model.model.layers[1].mlp.spare = nn.Linear(32, 32).requires_grad_(False)
    walking = walk(PrunableModel(model), tiny_tokens, Statistic.NORM, rewritten=False)
    next(walking)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.spare is not called .*--exclude"):
        next(walking)
    visits = walk(PrunableModel(model, "spare"), tiny_tokens, Statistic.NORM, rewritten=False)
    assert len(list(visits)) == 3


def test_no_hook_is_left_after_an_error(tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama())
    walking = walk(subject, tiny_tokens, Statistic.NORM, rewritten=False)
    next(walking)

    def fails(*_: object) -> None:
        raise RuntimeError("out of memory")

    handle = subject.blocks[1].mlp.register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        next(walking)
    handle.remove()
    assert not any(m._forward_pre_hooks for m in subject.model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_by_sublayers_the_feed_forward_sees_the_pruned_attention(
    family: str, tiny_tokens: Tensor
) -> None:
    """Each visit's statistics are those of a full model in which all visited before is halved."""
    subject, other = PrunableModel(FAMILIES[family]()), PrunableModel(FAMILIES[family]())
    walked = walk(subject, tiny_tokens, Statistic.HESSIAN, rewritten=True, refresh="sublayer")
    seen: list[str] = []
    lasts = []
    for visit in walked:
        expected = by_plain_hooks(other, tiny_tokens)
        for name, statistics in visit.statistics.items():
            assert_close(statistics.hessian(), expected[name].hessian(), rtol=1e-4, atol=1e-6)
        for model in (subject, other):
            for unit in visit.units:
                weight = model.views[unit.name].read().clone()
                weight.view(-1)[::2] = 0
                model.views[unit.name].write(weight)
        seen += [unit.name for unit in visit.units]
        lasts.append((visit.block, visit.last))
    assert sorted(seen) == sorted(unit.name for unit in subject.layout)
    assert len(lasts) > 3
    assert [block for block, last in lasts if last] == [0, 1, 2]


@pytest.mark.parametrize("kind", ["width", "heads", "sublayers", "blocks"])
def test_structures_belong_to_their_sublayer(kind: str, tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama(), units=kind)
    visits = walk(subject, tiny_tokens, Statistic.NORM, rewritten=True, refresh="sublayer")
    roles = [[unit.role for unit in visit.units] for visit in visits]
    assert roles == ([["block"]] if kind == "blocks" else [["attention"], ["feed_forward"]]) * 3


def test_dense_blocks_are_visited_once(tiny_tokens: Tensor) -> None:
    """Nothing is rewritten, so there is nothing to see for a later sublayer."""
    subject = PrunableModel(tiny_llama())
    walked = walk(subject, tiny_tokens, Statistic.NORM, rewritten=False, refresh="sublayer")
    assert [(visit.block, visit.last) for visit in walked] == [(0, True), (1, True), (2, True)]
