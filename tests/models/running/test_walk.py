from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from sparsity_search.errors import ModelError
from sparsity_search.evidence.statistics import InputStatistics, Statistic
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.runner import BlockRunner
from sparsity_search.models.running.walk import Refresh, walk
from sparsity_search.testing.evaluator import draw_random_tokens
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


@pytest.mark.parametrize("refresh", ["sublayer", "layer"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_part_sees_what_is_pruned_before_it(
    family: str, refresh: Refresh, tiny_tokens: Tensor
) -> None:
    """Each visit's statistics are those of a full model in which all visited before is halved."""
    subject, other = PrunableModel(FAMILIES[family]()), PrunableModel(FAMILIES[family]())
    walked = walk(subject, tiny_tokens, Statistic.HESSIAN, rewritten=True, refresh=refresh)
    seen: list[str] = []
    lasts = []
    for visit in walked:
        expected = by_plain_hooks(other, tiny_tokens)
        for name, statistics in visit.statistics.items():
            assert statistics.n_tokens == tiny_tokens.numel()
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


def test_a_layer_is_visited_with_all_that_read_its_input(tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama())
    visits = list(walk(subject, tiny_tokens, Statistic.NORM, rewritten=True, refresh="layer"))
    roles = [[unit.role for unit in visit.units] for visit in visits]
    assert roles == [["q", "k", "v"], ["o"], ["gate", "up"], ["down"]] * 3
    assert [visit.last for visit in visits] == [False, False, False, True] * 3
    assert all(found.following is None for visit in visits for found in visit.evidence.values())


def test_a_run_for_a_layer_ends_at_its_input() -> None:
    """The first batch shows the groups; only the next block needs whole runs."""
    subject, tokens = PrunableModel(tiny_llama()), draw_random_tokens(40, 16)
    ran: list[str] = []
    assert subject.flow  # runs the model once
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        layer = subject.model.get_submodule(f"model.layers.0.{name}")
        layer.register_forward_hook(lambda *_, name=name: ran.append(name))
    walked = walk(subject, tokens, Statistic.NORM, rewritten=True, refresh="layer")
    seen = []
    for visit in walked:
        seen.append([ran.count("self_attn.o_proj"), ran.count("mlp.down_proj")])
        if visit.block:
            break
    n = len(BlockRunner(subject, tokens).batches)
    assert n > 1
    assert seen == [[1, 1], [1, 1], [1 + n, 1], [1 + 2 * n, 1], [1 + 3 * n, 1 + n]]


def test_what_follows_is_known_before_it_changes(tiny_tokens: Tensor) -> None:
    """Gate and up see the norms of the inputs that the dense `down` has after pruned attention."""
    subject, other = PrunableModel(tiny_llama()), PrunableModel(tiny_llama())
    walked = walk(
        subject, tiny_tokens, Statistic.NORM, rewritten=True, refresh="layer", following=True
    )
    seen = 0
    for visit in walked:
        expected = by_plain_hooks(other, tiny_tokens)
        for unit in visit.units:
            following = visit.evidence[unit.name].following
            assert (following is not None) == (unit.role in ("gate", "up"))
            if following is not None:
                down = f"model.layers.{visit.block}.mlp.down_proj"
                assert_close(following.norms(), expected[down].norms())
                seen += 1
        for model in (subject, other):
            for unit in visit.units:
                weight = model.views[unit.name].read().clone()
                weight.view(-1)[::2] = 0
                model.views[unit.name].write(weight)
    assert seen == 6


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
