from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sparsity_search.allocators.bases.depth import (
    RemovalLosses,
    RemovalState,
    empty_units,
    find_least,
)
from sparsity_search.errors import ConfigError, InfeasibleBudgetError, ModelError, NumericalError
from sparsity_search.interfaces.allocator import AllocationProblem
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running import head
from sparsity_search.models.running.gradients import compute_weight_gradients
from sparsity_search.models.running.runner import BlockRunner
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.registry import ALLOCATORS
from sparsity_search.testing.evaluator import copy_weights, draw_random_tokens, sample_text
from sparsity_search.testing.models import tiny_llama
from tests.helpers.depth_models import loss_of, removed_by, shorter, with_identity
from tests.helpers.families import make_family

#: Every allocator of depth, with settings under which any unit may go.
DEPTH: dict[str, dict[str, int]] = {
    "block_influence": {},
    "angular_distance": {},
    "block_perplexity": {},
    "block_taylor": {"keep_first": 0, "keep_last": 0},
    "sleb": {"barrier": 0},
}
BIASED = {"attention_bias": True, "mlp_bias": True}


def subject_of(costs: list[int]) -> Any:
    """Return what `RemovalState` reads of a model: one unit a block, of these costs."""
    units = [
        Unit(name=str(i), block=i, role="block", count=1, cost=c) for i, c in enumerate(costs)
    ]
    return SimpleNamespace(layout=Layout(units), units="blocks", blocks=costs)


def problem(subject: Any, target: float, bounds: Bounds) -> AllocationProblem:
    return AllocationProblem(subject, torch.empty(0, 0), Budget(target), bounds)


def bounds_for(n_units: int, forced: set[int], banned: set[int]) -> Bounds:
    return Bounds(
        lower=np.array([int(i in forced) for i in range(n_units)]),
        upper=np.array([int(i not in banned - forced) for i in range(n_units)]),
    )


def one_pass(
    costs: list[int], scores: list[float], left: int, bounds: Bounds, keep: tuple[int, int]
) -> set[int]:
    """Go once through the units by score: what does not fit now never fits later."""
    n = len(costs)
    gone = set(np.flatnonzero(bounds.lower).tolist())
    left -= sum(costs[i] for i in gone)
    free = [i for i in sorted(range(n), key=lambda i: scores[i]) if bounds.upper[i]]
    inner = [i for i in free if keep[0] <= i < n - keep[1]]
    for group in (inner, free):
        for i in group:
            if i not in gone and costs[i] <= left:
                gone.add(i)
                left -= costs[i]
        if not gone.issuperset(inner):
            break
    return gone


@settings(max_examples=60)
@given(data=st.data())
def test_removal_by_score_is_one_pass_by_score(data: st.DataObject) -> None:
    costs = data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=8))
    n = len(costs)
    scores = [float(x) for x in data.draw(st.permutations(range(n)))]
    bounds = bounds_for(
        n, *(data.draw(st.sets(st.integers(0, n - 1), max_size=n // 3)) for _ in range(2))
    )
    keep = data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    budget = Budget(data.draw(st.floats(0.05, 0.95)))
    subject = subject_of(costs)
    total = budget.n_removed(subject.layout)
    try:
        budget.check(subject.layout, bounds)
    except InfeasibleBudgetError:
        return
    removal = RemovalState(problem(subject, budget.target, bounds), keep=keep)
    profile = removal.by_score(dict(enumerate(scores))).profile
    assert set(np.flatnonzero(profile.removed)) == one_pass(costs, scores, total, bounds, keep)
    off = total - profile.n_removed
    assert 0 <= off == removal.left < max(costs)


def test_what_does_not_fit_is_passed_over() -> None:
    removal = RemovalState(problem(subject_of([6, 3, 6, 3]), 0.5, bounds_for(4, set(), set())))
    found = removal.by_score({0: 0.0, 1: 3.0, 2: 1.0, 3: 2.0})
    assert found.profile.removed == (1, 0, 0, 1)


def test_what_is_kept_goes_only_when_nothing_else_is_left() -> None:
    subject = subject_of([1, 5, 5, 1])
    free = bounds_for(4, set(), set())
    scores = {0: 0.0, 1: 1.0, 2: 2.0, 3: 0.5}
    for target, removed in [(0.5, (0, 1, 0, 0)), (0.85, (0, 1, 1, 0)), (0.95, (1, 1, 1, 0))]:
        removal = RemovalState(problem(subject, target, free), keep=(1, 1))
        assert removal.by_score(scores).profile.removed == removed


def test_least() -> None:
    assert find_least({0: 2.0, 1: 1.0, 2: 1.0}, [0, 1, 2]) == 1
    assert find_least({0: math.nan, 1: math.inf, 2: 5.0}, [0, 1, 2]) == 2
    assert find_least({0: math.inf, 1: -1.0}, [0, 1]) == 1
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(NumericalError, match="no depth score is finite"):
            find_least({0: bad, 1: bad}, [0, 1])


@pytest.mark.parametrize("units", ["blocks", "sublayers"])
@pytest.mark.parametrize("name", DEPTH)
@pytest.mark.parametrize("where", [0, 2])
def test_a_block_that_does_nothing_goes_first(name: str, units: str, where: int) -> None:
    if (name, units) == ("angular_distance", "sublayers"):
        return
    subject = PrunableModel(with_identity(where), units=units)
    text = sample_text(subject.model, 6, 16)  # to remove any other block makes it less likely
    allocator = ALLOCATORS.create(name, **DEPTH[name])
    profile = allocator.allocate(subject, text, Budget(0.25), Bounds.of(subject.layout))
    removed = [unit.block for unit, n in zip(subject.layout, profile.removed, strict=True) if n]
    assert removed == [where] * (1 if units == "blocks" else 2)


@pytest.mark.parametrize("units", ["blocks", "sublayers"])
@pytest.mark.parametrize("name", [n for n in DEPTH if n != "angular_distance"])
def test_sublayers_of_unequal_cost_fill_the_budget(
    name: str, units: str, tiny_tokens: Tensor
) -> None:
    subject = PrunableModel(tiny_llama(layers=4), units=units)
    allocator = ALLOCATORS.create(name, **DEPTH[name])
    for target in (0.2, 0.45):
        bounds = Bounds.of(subject.layout)
        profile = allocator.allocate(subject, tiny_tokens[:2], Budget(target), bounds)
        left = Budget(target).n_removed(subject.layout) - profile.n_removed
        costs = subject.layout.costs[np.array(profile.removed) == 0]
        assert 0 <= left < costs.min()


def test_emptied_removes_and_restores() -> None:
    model = tiny_llama(**BIASED)
    for parameter in model.parameters():
        parameter.add_(0.01)
    subject, before = PrunableModel(model, units="sublayers"), copy_weights(model)
    names = [unit.name for unit in subject.units_of(1)]

    def fails() -> None:
        with empty_units(subject, *names):
            assert all(not subject.views[name].read().any() for name in names)
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fails()
    after = copy_weights(model)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


@pytest.mark.parametrize("options", [{}, BIASED])
def test_loss_without_a_block_is_that_of_a_shorter_model(
    options: dict[str, bool], tiny_tokens: Tensor
) -> None:
    model = tiny_llama(layers=4, **options)
    for parameter in model.parameters():
        parameter.add_(0.01)  # so that biases are not zero
    losses = RemovalLosses(PrunableModel(model, units="blocks"), tiny_tokens, None)
    found = losses.of(range(4))
    expected = {i: loss_of(shorter(model, {i}), tiny_tokens) for i in range(4)}
    assert found == pytest.approx(expected, rel=1e-5)
    assert len({round(loss, 3) for loss in found.values()}) == 4
    assert losses.of([2]) == {2: found[2]}


@pytest.mark.parametrize("family", ["llama", "gemma3", "granite", "cohere", "bamba", "gemma3n"])
def test_loss_without_a_sublayer(
    family: str, tiny_tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "POSITIONS", 4)
    subject = PrunableModel(make_family(family), units="sublayers")
    found = RemovalLosses(subject, tiny_tokens, None).of(range(len(subject.layout)))
    for i, unit in enumerate(subject.layout):
        with empty_units(subject, unit.name):
            assert found[i] == pytest.approx(loss_of(subject.model, tiny_tokens), rel=1e-5)


def test_losses_follow_the_model_as_it_is(tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama(layers=4), units="blocks")
    losses = RemovalLosses(subject, tiny_tokens, None)
    with empty_units(subject, "model.layers.1"):
        assert losses.of([2])[2] == pytest.approx(
            loss_of(shorter(subject.model, {1, 2}), tiny_tokens), rel=1e-5
        )


def test_losses_of_some_sequences() -> None:
    subject, tokens = PrunableModel(tiny_llama(), units="blocks"), draw_random_tokens(10, 16)
    some = RemovalLosses(subject, tokens, 3).of(range(3))
    assert some == RemovalLosses(subject, tokens[:3], None).of(range(3))
    assert some != RemovalLosses(subject, tokens, None).of(range(3))


def test_losses_run_only_what_is_behind(
    tiny_tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = PrunableModel(tiny_llama(layers=4), units="blocks")
    losses = RemovalLosses(subject, tiny_tokens[:4], None)
    calls: list[int] = []
    run = BlockRunner.run

    def counted(self: BlockRunner, block: int, hidden: list[Tensor]) -> list[Tensor]:
        calls.append(block)
        return run(self, block, hidden)

    monkeypatch.setattr(BlockRunner, "run", counted)
    losses.of([1, 2])
    assert calls == [0, 1, 2, 3, 1, 2, 3]


def test_losses_leave_the_model_usable(tiny_tokens: Tensor) -> None:
    """No patched block, and parameters that gradients can be taken of."""
    model = tiny_llama(**BIASED)
    for parameter in model.parameters():
        parameter.add_(0.01)
    subject = PrunableModel(model, units="blocks")
    RemovalLosses(subject, tiny_tokens, None).of(range(3))
    assert not any("forward" in vars(m) for m in model.modules())
    assert not any(parameter.is_inference() for parameter in model.parameters())
    assert all(
        g.mean.abs().sum() > 0 for g in compute_weight_gradients(subject, tiny_tokens[:2]).values()
    )


def test_losses_mend_the_blocks_after_an_error(tiny_tokens: Tensor) -> None:
    model = tiny_llama()
    subject, before = PrunableModel(model, units="blocks"), copy_weights(model)
    losses = RemovalLosses(subject, tiny_tokens, None)

    def fails(*_: object) -> None:
        raise RuntimeError("out of memory")

    handle = model.model.norm.register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        losses.of([1])
    handle.remove()
    assert not any("forward" in vars(m) for m in model.modules())
    assert all(torch.equal(w, before[name]) for name, w in copy_weights(model).items())


def test_losses_need_targets() -> None:
    subject = PrunableModel(tiny_llama(), units="blocks")
    with pytest.raises(ConfigError, match="at least 2 tokens"):
        RemovalLosses(subject, draw_random_tokens(3, 1), None)


@pytest.mark.parametrize("name", DEPTH)
def test_a_model_that_gives_nan_is_an_error(name: str, tiny_tokens: Tensor) -> None:
    model: nn.Module = tiny_llama()
    model.model.embed_tokens.weight.fill_(math.nan)
    subject = PrunableModel(model, units="blocks")
    # those that read losses check the head first
    with pytest.raises((NumericalError, ModelError), match=r"logits differ|no depth score"):
        removed_by(ALLOCATORS.create(name, **DEPTH[name]), subject, tiny_tokens, 1)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("block_perplexity", {"sequences": 0}),
        ("block_perplexity", {"keep_last": -1}),
        ("block_taylor", {"sequences": 0}),
        ("block_taylor", {"keep_first": -1}),
        ("sleb", {"sequences": 0}),
        ("sleb", {"barrier": -1}),
    ],
)
def test_settings(name: str, setting: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(setting))} must be at least"):
        ALLOCATORS.create(name, **setting)
