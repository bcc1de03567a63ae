from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsity_search.allocators.bases.scored import ScoredAllocator
from sparsity_search.allocators.greedy import GreedyAllocator
from sparsity_search.allocators.knapsack import KnapsackAllocator
from sparsity_search.allocators.lagrangian import LagrangianAllocator
from sparsity_search.errors import ConfigError, InfeasibleBudgetError, UnknownNameError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.layout import Layout
from sparsity_search.pruners.wanda import WandaPruner
from sparsity_search.registry import ALLOCATORS, PRUNERS
from sparsity_search.solvers.decisions import parse_limits
from sparsity_search.testing.models import tiny_llama
from tests.helpers.solver_problems import layout_of, random_scores, scores_of
from tests.helpers.solver_toys import Toy

SOLVERS = (KnapsackAllocator, GreedyAllocator, LagrangianAllocator)
TARGETS = (0.1, 0.37, 0.7, 0.95)


@pytest.fixture
def toy() -> KnapsackAllocator:
    return KnapsackAllocator(sensitivity=Toy())


def everywhere(layout: Layout) -> Bounds:
    return Bounds.of(layout)


@pytest.mark.parametrize("target", TARGETS)
def test_is_the_optimum_in_closed_form(target: float) -> None:
    # min Σ a_i n_i s_i² with Σ n_i s_i fixed: s_i is proportional to 1 / a_i, cut at 1
    layout = layout_of([4000, 2000, 1000, 3000])
    a = np.array([1.0, 2.0, 5.0, 3.0])
    scores = scores_of(layout, lambda i, s: a[i] * layout.counts[i] * s**2)
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        reached = np.minimum(middle / a, 1) @ layout.counts < target * layout.n_weights
        low, high = (middle, high) if reached else (low, middle)
    for solver in SOLVERS:
        found = solver(sensitivity=Toy()).solve(scores, Budget(target), everywhere(layout)).profile
        assert found.n_removed == Budget(target).n_removed(layout)
        np.testing.assert_allclose(found.sparsities, np.minimum(high / a, 1), atol=0.006)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", range(2))
def test_budget_and_bounds_are_exact(
    solver: type[ScoredAllocator], target: float, seed: int
) -> None:
    layout = layout_of([400, 37, 1000, 333, 1], zeros=[0, 5, 100, 0, 1])
    scores = random_scores(layout, seed)
    low, high = target - 0.07, min(1.0, target + 0.2)
    bounds = Bounds.of(layout, [low, 0, 0, 0, 0], [high, high, 1, 1, 1])
    allocator = solver(sensitivity=Toy())
    found = allocator.solve(scores, Budget(target), bounds).profile
    assert found.n_removed == Budget(target).n_removed(layout)
    assert (bounds.lower <= found.removed).all()
    assert (found.removed <= bounds.upper).all()
    assert allocator.solve(scores, Budget(target), bounds).profile == found


@pytest.mark.parametrize("seed", range(4))
def test_is_no_worse_than_uniform_or_the_other_solvers(seed: int) -> None:
    layout = layout_of([400, 37, 1000, 333])
    scores, last = random_scores(layout, seed), np.inf
    for target in (0.9, 0.6, 0.3):
        budget = Budget(target)
        exact, *others = (
            scores.loss(
                solver(sensitivity=Toy()).solve(scores, budget, everywhere(layout)).profile
            )
            for solver in SOLVERS
        )
        others.append(scores.loss(budget.uniform(layout)))
        assert exact <= min(others) * 1.001
        assert exact < last
        last = exact


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("power", [0.0, 1.0])
def test_equal_curves_give_the_uniform_profile(
    solver: type[ScoredAllocator], power: float
) -> None:
    layout = layout_of([400, 37, 1000, 333])
    scores = scores_of(layout, lambda i, s: power * layout.counts[i] * s**2)
    found = solver(sensitivity=Toy()).solve(scores, Budget(0.37), everywhere(layout)).profile
    assert found == Budget(0.37).uniform(layout)


def test_one_unit(toy: KnapsackAllocator) -> None:
    layout = layout_of([1000])
    found = toy.solve(random_scores(layout, 0), Budget(0.377), everywhere(layout)).profile
    assert found.removed == (377,)


@pytest.mark.parametrize("solver", SOLVERS)
def test_tied_units_share_a_sparsity(solver: type[ScoredAllocator]) -> None:
    layout = layout_of([400, 200, 1000, 600] * 3)
    scores = random_scores(layout, 5, convex=True)
    found = (
        solver(sensitivity=Toy(), tied=("block",))
        .solve(scores, Budget(0.37), everywhere(layout))
        .profile
    )
    assert found.n_removed == Budget(0.37).n_removed(layout)
    shares = found.sparsities.reshape(3, 4)
    assert (np.ptp(shares, axis=1) <= 1.01 / 200).all()
    assert np.ptp(shares.mean(axis=1)) > 0.02


def test_limits(toy: KnapsackAllocator) -> None:
    layout = layout_of([400, 200, 1000, 600] * 2)
    scores = random_scores(layout, 1, convex=True)
    limited = dataclasses.replace(toy, limits=parse_limits({"q|v": [0.6, 0.65], "d": [0, 0.3]}))
    found = limited.solve(scores, Budget(0.5), everywhere(layout)).profile
    assert found.n_removed == Budget(0.5).n_removed(layout)
    assert 0.6 <= np.array(found.removed)[[0, 1, 4, 5]].sum() / 1200 <= 0.65
    assert np.array(found.removed)[[3, 7]].sum() / 1200 <= 0.3
    assert hash(limited) == hash(dataclasses.replace(limited, limits=limited.limits))
    wide = dataclasses.replace(toy, limits=parse_limits({".*": [0, 1]}))
    free = scores.loss(toy.solve(scores, Budget(0.5), everywhere(layout)).profile)
    same = scores.loss(wide.solve(scores, Budget(0.5), everywhere(layout)).profile)
    assert free <= same * 1.0001 <= free * 1.01


def test_limits_out_of_reach_are_refused_before_any_work(
    tiny_subject: PrunableModel, tiny_tokens: Tensor
) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Never(Toy):
        def measure(self, *_: object, **__: object) -> object:  # type: ignore[override]
            raise AssertionError("something was measured")

    bounds = everywhere(tiny_subject.layout)
    knapsack = KnapsackAllocator(
        sensitivity=Never(), limits=parse_limits({"gate|up|down": [0.0, 0.1]})
    )
    with pytest.raises(InfeasibleBudgetError, match=r"give 0 to 0\.39"):
        knapsack.allocate(tiny_subject, tiny_tokens, Budget(0.5), bounds)
    with pytest.raises(UnknownNameError, match="no role matches 'gat'"):
        KnapsackAllocator(sensitivity=Never(), limits=parse_limits({"gat": (0.0, 0.1)})).allocate(
            tiny_subject, tiny_tokens, Budget(0.5), bounds
        )


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("pattern", ["2:4", "*:4", "1:8"])
@pytest.mark.parametrize("target", [0.21, 0.45])
def test_patterns(
    solver: type[ScoredAllocator],
    pattern: str,
    target: float,
    tiny_subject: PrunableModel,
    tiny_tokens: Tensor,
) -> None:
    layout = tiny_subject.layout
    allocator = solver(sensitivity=Toy(), pruner=WandaPruner(pattern=pattern))
    found = allocator.allocate(tiny_subject, tiny_tokens, Budget(target), everywhere(layout))
    group = int(pattern[-1])
    kept = group - np.array(found.removed) * group / layout.counts
    legal = set(range(group + 1)) if pattern[0] == "*" else {int(pattern[0]), group}
    assert set(kept.tolist()) <= legal
    tables = ((0, *table) for table in allocator.tables(layout))
    back = [c - t[t.index(c) - 1] for c, t in zip(found.removed, tables, strict=True) if c]
    assert 0 <= found.n_removed - Budget(target).n_removed(layout) < min(back)


def test_patterns_out_of_reach(tiny_subject: PrunableModel, tiny_tokens: Tensor) -> None:
    knapsack = KnapsackAllocator(sensitivity=Toy(), pruner=WandaPruner(pattern="2:4"))
    with pytest.raises(InfeasibleBudgetError, match=r"give 0 to 0\.5"):
        knapsack.check(tiny_subject.layout, Budget(0.6), everywhere(tiny_subject.layout))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("units", "pruner"), [("width", "wanda_sp"), ("heads", "wanda_sp")])
def test_structures(
    solver: type[ScoredAllocator], units: str, pruner: str, tiny_tokens: Tensor
) -> None:
    subject = PrunableModel(tiny_llama(num_attention_heads=8, num_key_value_heads=4), units=units)
    layout, costs = subject.layout, subject.layout.costs
    allocator = solver(sensitivity=Toy(), pruner=PRUNERS.create(pruner))
    for target in (0.2, 0.55):
        found = allocator.allocate(subject, tiny_tokens, Budget(target), everywhere(layout))
        missing = Budget(target).n_removed(layout) - found.n_removed
        assert 0 <= missing < costs[found.removed < layout.counts].min()


def test_pairs(tiny_subject: PrunableModel, tiny_tokens: Tensor) -> None:
    layout, budget = tiny_subject.layout, Budget(0.5)
    bounds = everywhere(layout)
    plain = KnapsackAllocator(sensitivity=Toy(pairs=50.0), levels=(0.5, 1.0))
    paired = dataclasses.replace(plain, use_pairs=True)
    first = plain.allocate(tiny_subject, tiny_tokens, budget, bounds)
    assert first == KnapsackAllocator(
        sensitivity=Toy(), levels=(0.5, 1.0), use_pairs=True
    ).allocate(tiny_subject, tiny_tokens, budget, bounds)
    second = paired.allocate(tiny_subject, tiny_tokens, budget, bounds)
    assert second != first
    assert second.n_removed == budget.n_removed(layout)
    scores = paired.measure(tiny_subject, tiny_tokens)
    assert paired.predict(scores, second) < paired.predict(scores, first)
    assert dataclasses.replace(paired, shrink=0.0).solve(scores, budget, bounds).profile == first


def test_tells_the_predicted_losses(
    toy: KnapsackAllocator, tiny_subject: PrunableModel, tiny_tokens: Tensor
) -> None:
    layout, budget = tiny_subject.layout, Budget(0.37)
    found = toy.detailed(tiny_subject, tiny_tokens, budget, everywhere(layout))
    scores = toy.measure(tiny_subject, tiny_tokens)
    best, uniform = scores.loss(found.profile), scores.loss(budget.uniform(layout))
    assert best < uniform
    assert found.notes == (f"predicted loss {best:.6g}; of the uniform profile {uniform:.6g}",)
    asked = dataclasses.replace(toy, use_pairs=True)
    assert asked.solve(scores, budget, everywhere(layout)).notes[1] == "no pairs were measured"


def test_a_stopped_solver_is_told(toy: KnapsackAllocator, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsity_search.solvers import integer

    real = integer.milp

    def stopped(*args: object, **kwargs: object) -> object:
        found = real(*args, **kwargs)
        found.status, found.mip_gap = 1, 0.014
        return found

    layout = layout_of([400, 200])
    limited = dataclasses.replace(toy, limits=parse_limits({"q": [0.0, 0.5]}))
    monkeypatch.setattr(integer, "milp", stopped)
    notes = limited.solve(random_scores(layout, 0), Budget(0.5), everywhere(layout)).notes
    assert notes[1] == "stopped by time_limit within 0.014 of the optimum"


def test_arguments_of_the_sensitivity(tiny_subject: PrunableModel, tiny_tokens: Tensor) -> None:
    seen: dict[str, object] = {}

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Spy(Toy):
        def measure(self, subject, tokens, pruner, tables, *, seed=0):  # type: ignore[no-untyped-def]
            seen.update(tokens=tokens, pruner=pruner, tables=tables, seed=seed)
            return super().measure(subject, tokens, pruner, tables, seed=seed)

    knapsack = KnapsackAllocator(
        sensitivity=Spy(), pruner=PRUNERS.create("magnitude"), levels=(0.25, 1.0), seed=7
    )
    bounds = everywhere(tiny_subject.layout)
    knapsack.allocate(tiny_subject, tiny_tokens, Budget(0.5), bounds)
    assert torch.equal(seen["tokens"], tiny_tokens)  # type: ignore[arg-type]
    assert seen["pruner"] == knapsack.pruner
    assert seen["seed"] == 7
    assert seen["tables"] == tuple((u.count // 4, u.count) for u in tiny_subject.layout)


def test_a_pruner_of_other_units_is_refused(tiny_tokens: Tensor, toy: KnapsackAllocator) -> None:
    subject = PrunableModel(tiny_llama(), units="width")
    with pytest.raises(ConfigError, match="wanda needs units weights"):
        toy.allocate(subject, tiny_tokens, Budget(0.5), everywhere(subject.layout))


def test_settings_name_plugins() -> None:
    by_name = ALLOCATORS.create("knapsack", sensitivity="fisher", pruner="magnitude")
    by_settings = ALLOCATORS.create(
        "knapsack", sensitivity={"name": "fisher"}, pruner={"name": "magnitude"}
    )
    assert by_name == by_settings
    assert hash(by_name) == hash(by_settings)
    assert ALLOCATORS.create("knapsack", tied="role").tied == ("role",)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sensitivity": "fischer"}, "'fisher'"),
        ({"sensitivity": {"sequences": 4}}, "needs a name"),
        ({"sensitivity": 3}, "sensitivity must be a name"),
        ({"pruner": "wnada"}, "'wanda'"),
        ({"levels": ()}, "levels"),
        ({"levels": (0.0, 0.5)}, "levels"),
        ({"tied": ("rol",)}, "tied"),
        ({"step": 0.0}, "step"),
        ({"shrink": 1.1}, "shrink"),
        ({"time_limit": 0.0}, "time_limit"),
        ({"limits": {"q": (0.6, 0.5)}}, "limits"),
        ({"limits": {"q": (0.1, 0.5)}, "use_pairs": True}, "use_pairs"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises((ConfigError, UnknownNameError), match=words):
        ALLOCATORS.create("knapsack", **settings)
