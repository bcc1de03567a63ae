from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsity_search.allocators.gauss_newton import GaussNewtonAllocator
from sparsity_search.allocators.gauss_newton.descent import Descent
from sparsity_search.errors import ConfigError, InfeasibleBudgetError
from sparsity_search.evaluators.kl_divergence import KLDivergenceEvaluator
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.divergence_expansion import DivergenceExpansion
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.profiles.scores import build_count_tables
from sparsity_search.pruners.wanda import WandaPruner
from sparsity_search.registry import ALLOCATORS, PRUNERS
from sparsity_search.sensitivities.fisher import FisherSensitivity
from sparsity_search.supernet.build import SupernetDesign, build_supernet
from sparsity_search.testing.allocator import assert_meets
from sparsity_search.testing.models import tiny_llama, tiny_mixtral

#: Quick, on the tiny model.
QUICK = {"steps": 2, "spacing": 0.05, "sequences": 4, "positions": 16}


def create(**settings: Any) -> GaussNewtonAllocator:
    """Return the allocator with plugins built from what its settings name."""
    return ALLOCATORS.create("gauss_newton", **settings)  # type: ignore[no-any-return]


def pruned_divergence(
    subject: PrunableModel, tokens: Tensor, profile: SparsityProfile, rows: int, pruner: Pruner
) -> float:
    """Return what the evaluator says of a profile, pruned in one walk."""
    proxy = KLDivergenceEvaluator().bind(subject.model, tokens[:rows])
    plan = SupernetDesign(pruner=pruner, tables=[(c,) for c in profile.removed], centre=profile)
    with build_supernet(subject, tokens, plan).resident() as switch:
        switch.to(profile)
        return proxy.score(subject.model, range(rows)).value


def told(found: Any) -> list[float]:
    """Return the divergences that the note tells."""
    (note,) = found.notes
    path = re.fullmatch(r"KL on calibration text, from the start on: (.*) nats a token", note)
    assert path is not None
    return [float(value) for value in path[1].split(" → ")]


def halve(subject: PrunableModel) -> None:
    """Prune a model unevenly, so that no slope is zero."""
    for i, view in enumerate(subject.views.values()):
        weight = view.read()
        limit = weight.abs().flatten().kthvalue(int(weight.numel() * (0.2 + 0.02 * i))).values
        view.write(weight.masked_fill(weight.abs() <= limit, 0))


def test_value_is_the_evaluators(tiny_subject: PrunableModel, tiny_tokens: Tensor) -> None:
    text = tiny_tokens[:5]  # a smaller batch at the end
    proxy = KLDivergenceEvaluator().bind(tiny_subject.model, text)
    divergence = DivergenceExpansion(tiny_subject, text, 16, 0)
    assert divergence.value() == pytest.approx(0, abs=1e-6)
    halve(tiny_subject)
    expected = proxy.score(tiny_subject.model, range(5)).value
    assert divergence.value() == pytest.approx(expected, rel=1e-5)
    assert divergence.recorded()[0] == pytest.approx(expected, rel=1e-5)
    next(iter(tiny_subject.views.values())).write(torch.full((32, 32), torch.nan))
    assert not divergence.value() < np.inf


@pytest.mark.parametrize("units", ["weights", "width"])
def test_first_order_is_the_slope_about_a_pruned_profile(units: str, tiny_tokens: Tensor) -> None:
    model = tiny_llama(layers=2, dtype=torch.float64)
    divergence = DivergenceExpansion(PrunableModel(model, units=units), tiny_tokens[:3], 16, 0)
    halve(PrunableModel(model))
    _, recordings = divergence.recorded()
    for name, view in divergence.subject.views.items():
        here = view.read().clone()
        change = 1e-3 * torch.randn(here.shape, generator=torch.Generator().manual_seed(0)).to(
            here
        )
        if view.structures is not None:
            view.structures.bodies(change)[:, :, view.structures.inner :] = 0
        values = []
        for sign in (1, -1):
            view.write(here + sign * change)
            values.append(divergence.value())
        view.write(here)
        up, down = (divergence.change(name, sign * change, recordings) for sign in (1, -1))
        assert (up - down) / 2 == pytest.approx((values[0] - values[1]) / 2, rel=0.01, abs=2e-6)
        assert up + down > 0


def test_second_order_is_fisher_information(
    tiny_subject: PrunableModel, tiny_tokens: Tensor
) -> None:
    counts = build_count_tables(tiny_subject.layout, (0.5,))
    text = tiny_tokens[:5]
    fisher = FisherSensitivity(sequences=5, positions=7).measure(
        tiny_subject, text, WandaPruner(), counts, seed=4
    )
    divergence = DivergenceExpansion(tiny_subject, text, 7, 4)
    _, recordings = divergence.recorded()  # of the dense model: there is no first order
    centre = Budget(0.5).uniform(tiny_subject.layout)
    supernet = build_supernet(tiny_subject, text, SupernetDesign(
        pruner=WandaPruner(), tables=counts, centre=centre, propagate="dense"
    ))  # fmt: skip
    with supernet.resident() as switch:
        for unit, (count,), (loss,) in zip(
            tiny_subject.layout, counts, fisher.losses, strict=True
        ):
            change = switch.change(unit.name, count)
            found = divergence.change(unit.name, change, recordings)
            assert found == pytest.approx(loss, rel=1e-3)


def redundant() -> PrunableModel:
    """Return a model whose second block writes next to nothing."""
    model = tiny_llama(layers=3)
    block = model.model.layers[1]
    for linear in (block.self_attn.o_proj, block.mlp.down_proj):
        linear.weight *= 1e-3
    return PrunableModel(model)


def divergence_around(
    subject: PrunableModel, tokens: Tensor, profile: SparsityProfile, centre: SparsityProfile
) -> float:
    """Return the divergence of a profile on a supernet whose later blocks see another one."""
    divergence = DivergenceExpansion(subject, tokens[:4], 16, 0)
    pairs = zip(profile.removed, centre.removed, strict=True)
    tables = [tuple(sorted(set(counts))) for counts in pairs]
    design = SupernetDesign(pruner=WandaPruner(), tables=tables, centre=centre)
    with build_supernet(subject, tokens, design).resident() as switch:
        switch.to(profile)
        return divergence.value()


def test_a_redundant_block_goes_first(tiny_tokens: Tensor) -> None:
    subject, budget = redundant(), Budget(0.4)
    bounds = Bounds.of(subject.layout)
    found = create(**{**QUICK, "reach": 0.3, "steps": 3}).detailed(
        subject, tiny_tokens, budget, bounds
    )
    first, second, third = found.profile.grouped("block").values()
    assert second > 0.75
    assert max(first, third) < 0.35
    values = told(found)
    assert min(values) < 0.7 * values[0]
    uniform = budget.uniform(subject.layout, bounds)
    real = pruned_divergence(subject, tiny_tokens, uniform, 4, WandaPruner())
    assert real == pytest.approx(values[0], rel=1e-3)
    around = divergence_around(subject, tiny_tokens, found.profile, uniform)
    assert around == pytest.approx(min(values), rel=1e-2)  # the projection moves some weights


def faked(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    """Let the divergence have these values at the start and after each step."""
    first, *after = values
    left, recorded = iter(after), DivergenceExpansion.recorded
    monkeypatch.setattr(DivergenceExpansion, "recorded", lambda d: (first, recorded(d)[1]))
    monkeypatch.setattr(DivergenceExpansion, "value", lambda _: next(left))


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> list[tuple[np.ndarray, ...]]:
    """From where, how far at most, and to where each step went."""
    seen: list[tuple[np.ndarray, ...]] = []
    solve = Descent._solve

    def spy(self: Any, levels: np.ndarray, changes: Any, reach: np.ndarray) -> np.ndarray:
        found = solve(self, levels, changes, reach)
        seen.append((levels, reach, found))
        return found

    monkeypatch.setattr(Descent, "_solve", spy)
    return seen


def test_a_step_that_does_not_help_halves_the_reach(
    monkeypatch: pytest.MonkeyPatch,
    tiny_subject: PrunableModel,
    tiny_tokens: Tensor,
    solved: list[tuple[np.ndarray, ...]],
) -> None:
    faked(monkeypatch, [1.0, 1.0, 2.0, np.nan, 3.0, 4.0, 5.0, 6.0])
    budget, bounds = Budget(0.55), Bounds.of(tiny_subject.layout)
    method = create(**{**QUICK, "steps": 7, "reach": 0.4})
    found = method.detailed(tiny_subject, tiny_tokens, budget, bounds)
    assert found.profile == budget.uniform(tiny_subject.layout, bounds)
    reaches = [int(reach.max()) for _, reach, _ in solved]
    assert reaches[0] == 8
    # a step that was tried already is not tried again, with half the reach at once
    assert all(later in (now // 2, now // 4) for now, later in pairwise(reaches))
    for levels, reach, proposed in solved:
        assert (levels == solved[0][0]).all()
        assert (np.abs(proposed - levels) <= reach).all()
    proposals = [tuple(proposed) for *_, proposed in solved]
    assert len(set(proposals)) == len(proposals)
    # no step of less than a level
    assert len(told(found)) == 1 + sum(reach > 0 for reach in reaches) > 3


def test_the_best_of_all_is_returned(
    monkeypatch: pytest.MonkeyPatch,
    tiny_subject: PrunableModel,
    tiny_tokens: Tensor,
    solved: list[tuple[np.ndarray, ...]],
) -> None:
    faked(monkeypatch, [5.0, 4.0, 6.0, 3.0, 3.5])
    bounds = Bounds.of(tiny_subject.layout)
    method = create(**{**QUICK, "steps": 4, "reach": 0.2})
    found = method.detailed(tiny_subject, tiny_tokens, Budget(0.55), bounds)
    starts, reaches, proposed = zip(*solved, strict=True)
    assert (starts[1] == proposed[0]).all()  # from the better one
    assert (starts[2] == proposed[0]).all()  # and back to it
    assert (starts[3] == proposed[2]).all()
    assert [int(reach.max()) for reach in reaches] == [4, 4, 2, 2]
    assert told(found) == [5, 4, 6, 3, 3.5]
    step = 0.05 * tiny_subject.layout.counts
    uniform = np.array(Budget(0.55).uniform(tiny_subject.layout).removed)
    moved = proposed[2] - starts[0]
    off = np.array(found.profile.removed) - uniform - moved * step
    assert (np.abs(off) < step).all()  # the projection takes back what is too much


def test_never_worse_than_uniform(tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama(layers=2, seed=3))
    for target in (0.3, 0.8):
        found = create(**QUICK).detailed(
            subject, tiny_tokens, Budget(target), Bounds.of(subject.layout)
        )
        values = told(found)
        uniform = Budget(target).uniform(subject.layout)
        expected = pruned_divergence(subject, tiny_tokens, uniform, 4, WandaPruner())
        assert values[0] == pytest.approx(expected, rel=1e-3)
        assert min(values) < values[0]


@pytest.mark.parametrize(
    ("units", "pruner", "spacing"),
    [
        ("weights", "sparsegpt", 0.25),
        ("weights", {"name": "wanda", "pattern": "layer"}, 0.5),
        ("width", "wanda_sp", 0.05),
        ("width", "flap", 0.2),
        ("heads", "wanda_sp", 0.05),
        ("blocks", "drop", 0.01),
    ],
)
def test_other_pruners_and_units(
    units: str, pruner: Any, spacing: float, tiny_tokens: Tensor
) -> None:
    subject, budget = PrunableModel(tiny_llama(layers=4), units=units), Budget(0.6)
    method = create(**{**QUICK, "spacing": spacing, "pruner": pruner, "reach": 0.3})
    found = method.detailed(subject, tiny_tokens, budget, Bounds.of(subject.layout))
    assert_meets(found.profile, budget)
    if units == "weights":  # also where the grid is coarse, the start is uniform
        uniform = budget.uniform(subject.layout)
        expected = pruned_divergence(subject, tiny_tokens, uniform, 4, method.pruner)
        assert told(found)[0] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("pattern", "target", "legal"),
    [("2:4", 0.3, (0, 4)), ("2:4", 0.5, (4,)), ("*:8", 0.4, range(8)), ("4:8", 0.2, (0, 4))],
)
def test_patterns(pattern: str, target: float, legal: Any, tiny_tokens: Tensor) -> None:
    subject, budget = PrunableModel(tiny_llama()), Budget(target)
    pruner = {"name": "wanda", "pattern": pattern}
    found = create(**QUICK, pruner=pruner).allocate(
        subject, tiny_tokens, budget, Bounds.of(subject.layout)
    )
    eighths = np.array(found.removed) * 8 / subject.layout.counts
    assert set(eighths.tolist()) <= set(legal)
    steps = subject.layout.counts // (8 if pattern == "*:8" else 2)
    surplus = found.n_removed - budget.n_removed(subject.layout)
    assert 0 <= surplus < steps[np.array(found.removed) > 0].min()


def test_a_pattern_that_cannot_meet_the_budget(
    tiny_subject: PrunableModel, tiny_tokens: Tensor
) -> None:
    tiny_subject.model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    method = create(pruner={"name": "wanda", "pattern": "2:4"})
    with pytest.raises(InfeasibleBudgetError, match="out of reach"):
        method.allocate(tiny_subject, tiny_tokens, Budget(0.6), Bounds.of(tiny_subject.layout))


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"stages": 0}, "stages must be at least 1, not 0"),
        ({"sequences": 0}, "sequences must be at least 1"),
        ({"length": 0}, "length must be at least 1"),
        ({"positions": -1}, "positions must be at least 1, not -1"),
        ({"reach": 0.0}, r"reach must lie in \(0, 1\], not 0"),
        ({"span": 0.0}, r"span must lie in \(0, 1\], not 0"),
        ({"spacing": 1.5}, r"spacing must lie in \(0, 1\], not 1.5"),
    ],
)
def test_settings(given_: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ALLOCATORS.create("gauss_newton", **given_)


@pytest.mark.parametrize(
    ("units", "pruner", "message"),
    [
        ("width", "wanda", "needs units weights"),
        ("blocks", "laco", "search with drop"),
        ("weights", "wanda", "leave experts out"),
    ],
)
def test_refused(units: str, pruner: str, message: str, tiny_tokens: Tensor) -> None:
    model = tiny_mixtral() if "experts" in message else tiny_llama()
    subject = PrunableModel(model, units=units)
    method = create(**QUICK, pruner=PRUNERS.create(pruner))
    with pytest.raises(ConfigError, match=message):
        method.allocate(subject, tiny_tokens, Budget(0.5), Bounds.of(subject.layout))


@pytest.mark.parametrize("start", ["er", {"name": "by_role", "offsets": {"q": 0.2, "up": -0.1}}])
def test_it_starts_from_another_profile(tiny_tokens: Tensor, start: Any) -> None:
    subject = PrunableModel(tiny_llama(layers=2, seed=3))
    budget, bounds = Budget(0.6), Bounds.of(subject.layout)
    method = create(start=start, **QUICK)
    profile = method.start.allocate(subject, tiny_tokens, budget, bounds)  # type: ignore[union-attr]
    found = method.detailed(subject, tiny_tokens, budget, bounds)
    expected = pruned_divergence(subject, tiny_tokens, profile, 4, WandaPruner())
    assert told(found)[0] == pytest.approx(expected, rel=1e-3)
    assert told(found)[0] != pytest.approx(told(create(**QUICK).detailed(
        subject, tiny_tokens, budget, bounds))[0], rel=1e-3)  # fmt: skip
    assert min(told(found)) <= told(found)[0]


@pytest.mark.parametrize("pruner", ["sparsegpt", "wanda"])
def test_a_stage_goes_on_where_the_last_ended(tiny_tokens: Tensor, pruner: str) -> None:
    subject = PrunableModel(tiny_llama(layers=2, seed=3))
    budget, bounds = Budget(0.6), Bounds.of(subject.layout)
    settings = {**QUICK, "pruner": pruner}
    both = create(stages=2, **settings).detailed(subject, tiny_tokens, budget, bounds)
    nested = create(start={"name": "gauss_newton", **settings}, **settings)
    second = nested.detailed(subject, tiny_tokens, budget, bounds)
    first = nested.start.detailed(subject, tiny_tokens, budget, bounds)
    assert both.profile == second.profile
    assert both.profile != first.profile
    assert both.notes == (*first.notes, *second.notes)


@pytest.mark.parametrize("start", [3, {"m": 4}, {"name": 3}])
def test_starts_that_are_none(start: Any) -> None:
    with pytest.raises(ConfigError, match=r"allocator must be|allocator with settings needs"):
        create(start=start)
