from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from sparsity_search.errors import ConfigError
from sparsity_search.evidence.statistics import Statistic
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.profiles.patterns import Pattern
from sparsity_search.pruners.admm import (
    AdmmPruner,
    _choose_smallest_of_rows,
    compute_scheduled_count,
)
from sparsity_search.pruners.bases.order import (
    build_sort_keys,
    compute_removal_order,
    draw_tie_breaks,
)
from sparsity_search.pruners.magnitude import MagnitudePruner
from sparsity_search.pruners.wanda import WandaPruner
from sparsity_search.registry import PRUNERS
from sparsity_search.testing.pruner import build_evidence, draw_correlated_inputs, draw_gaussian

ROWS, COLUMNS = 24, 48
SIZE = ROWS * COLUMNS
DAMPING = 0.1


def prune(weight: Tensor, inputs: Tensor, count: int, pruner: Pruner, seed: int = 0) -> Tensor:
    known = build_evidence(inputs, Statistic.HESSIAN)
    return pruner.prune(weight, known, [count], seed=seed).at(weight, count)


def problem(seed: int = 0) -> tuple[Tensor, Tensor]:
    return draw_gaussian(ROWS, COLUMNS, seed=seed), draw_correlated_inputs(
        400, COLUMNS, seed=seed + 50
    )


def hessian_of(inputs: Tensor, damping: float = DAMPING) -> Tensor:
    """Each diagonal entry is damped by a fraction of itself: the mean after scaling is 1."""
    hessian = inputs.double().T @ inputs.double() / len(inputs)
    return hessian + damping * hessian.diagonal().diag()


def layer_error(weights: Tensor, dense: Tensor, hessian: Tensor) -> float:
    change = weights.double() - dense.double()
    return float(((change @ hessian) * change).sum())


def ls_oracle(weight: Tensor, hessian: Tensor, keep: Tensor) -> Tensor:
    """The best weights with this mask: for each row, H_SS w_S = H_S,: w."""
    best = torch.zeros_like(weight, dtype=torch.float64)
    for row, kept, out in zip(weight.double(), keep, best, strict=True):
        out[kept] = torch.linalg.solve(hessian[kept][:, kept], hessian[kept] @ row)
    return best


def lowest(score: Tensor, pattern: str, number: int, total: int) -> Tensor:
    """Remove ``number`` entries of least score, on the way to ``total``; zeros have score -1."""
    values, rounds = score.flatten().tolist(), [0] * score.numel()
    places = list(range(score.numel()))
    if pattern == "row":  # after the zeros the lowest of each row, then the second lowest, …
        ranks = score.argsort(1).argsort(1).flatten().tolist()
        rounds = [rank if value >= 0 else -1 for rank, value in zip(ranks, values, strict=True)]
    elif pattern != "layer":
        group = int(pattern.partition(":")[2])
        each = total * group // score.numel()
        ranks = score.view(-1, group).argsort(1).argsort(1).flatten().tolist()
        places = [place for place in places if ranks[place] < each]
    places.sort(key=lambda place: (rounds[place], values[place]))
    removed = torch.zeros(score.numel(), dtype=torch.bool)
    removed[places[:number]] = True
    return removed.view(score.shape)


def naive(weight: Tensor, inputs: Tensor, count: int, settings: AdmmPruner) -> Tensor:
    """The paper's iteration in float64, with its duals and its right-hand side."""
    gram = inputs.double().T @ inputs.double()
    norms = gram.diagonal().sqrt()
    gram = gram / norms / norms[:, None] + settings.damping * torch.eye(len(norms))
    values = start = norms[:, None] * weight.double().T
    inverse = torch.linalg.inv(gram + settings.rho * torch.eye(len(norms)))
    dual, zero = torch.zeros_like(values), weight == 0
    removed = zero
    for step in range(settings.iterations):
        if step < settings.schedule:
            share = 1 - (1 - (step + 1) / settings.schedule) ** 3
            score = (values + dual).T.abs().masked_fill(zero, -1)
            number = max(int(zero.sum()), round(share * count))
            removed = lowest(score, settings.pattern, number, count)
        sparse = (values + dual).masked_fill(removed.T, 0)
        dual = dual + values - sparse
        values = inverse @ (gram @ start + settings.rho * (sparse - dual))
    return ((values + dual).masked_fill(removed.T, 0) / norms[:, None]).T


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
@pytest.mark.parametrize(
    "settings",
    [
        AdmmPruner(),
        AdmmPruner(rho=3.0, damping=0.01, iterations=7, schedule=4),
        AdmmPruner(pattern="row"),
        AdmmPruner(pattern="*:4"),
        AdmmPruner(pattern="*:8", schedule=20),
    ],
)
def test_equals_the_naive_method(settings: AdmmPruner, share: float) -> None:
    weight, inputs = problem()
    count = int(share * SIZE)
    ours, oracle = (method(weight, inputs, count, settings) for method in (prune, naive))
    assert torch.equal(ours == 0, oracle == 0)
    assert_close(ours, oracle.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pattern", ["layer", "row"])
def test_zeros_are_removed_from_the_first_step_on(pattern: str) -> None:
    weight, inputs = problem()
    weight[draw_gaussian(ROWS, COLUMNS, seed=5) > 0.5] = 0
    weight[3, :40] = 0
    settings, existing = AdmmPruner(pattern=pattern), int((weight == 0).sum())
    for count in (existing + 1, 800):
        ours, oracle = (method(weight, inputs, count, settings) for method in (prune, naive))
        assert torch.equal(ours == 0, oracle == 0)
        assert_close(ours, oracle.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pattern", ["1:4", "3:4", "4:8", "5:6"])
def test_groups_keep_as_many_as_the_pattern_says(pattern: str) -> None:
    weight, inputs = problem()
    keep, group = map(int, pattern.split(":"))
    count = SIZE * (group - keep) // group
    settings = AdmmPruner(pattern=pattern)
    ours = prune(weight, inputs, count, settings)
    assert ((ours.view(-1, group) != 0).sum(1) == keep).all()
    assert torch.equal(ours == 0, naive(weight, inputs, count, settings) == 0)


def test_the_paper_s_schedule() -> None:
    steps = [compute_scheduled_count(3375, step, 15) for step in range(15)]
    assert steps[:3] == [631, 1178, 1647]  # of 15³: 15³ - 14³, 15³ - 13³, 15³ - 12³
    assert steps[-3:] == [3367, 3374, 3375]
    assert compute_scheduled_count(1000, 0, 1) == 1000


@given(st.integers(1, 10**9), st.integers(1, 50))
def test_schedules_rise_to_the_count(count: int, steps: int) -> None:
    numbers = [compute_scheduled_count(count, step, steps) for step in range(steps)]
    assert numbers == sorted(numbers)
    assert 0 <= numbers[0] <= numbers[-1] == count


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_a_fixed_mask_converges_to_least_squares(share: float, seed: int) -> None:
    weight, inputs = problem(seed)
    hessian, count = hessian_of(inputs), int(share * SIZE)
    removed = prune(weight, inputs, count, WandaPruner()) == 0
    best = layer_error(ls_oracle(weight, hessian, ~removed), weight, hessian)
    gaps = []
    for iterations in (1, 5, 20, 100):
        settings = AdmmPruner(mask=WandaPruner(), iterations=iterations, schedule=1)
        ours = prune(weight, inputs, count, settings)
        assert torch.equal(ours == 0, removed)
        gaps.append(layer_error(ours, weight, hessian) / best - 1)
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.05
    assert gaps[2] < 0.01
    assert gaps[3] < 1e-5


@pytest.mark.parametrize("pattern", ["layer", "row", "*:4", "2:4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_schedule_of_one_step_takes_wanda_s_mask(pattern: str, dtype: torch.dtype) -> None:
    weight, inputs = problem()
    weight = (2 * weight).trunc().to(dtype)  # many zeros, many ties
    weight[5] = 1
    inputs[:, [3, 11]] = 0
    inputs[:, 13] = inputs[:, 12]
    known = build_evidence(inputs, Statistic.HESSIAN)
    step = SIZE // 4
    counts = [0, 2 * step] if pattern == "2:4" else range(0, SIZE, step)
    settings = AdmmPruner(pattern=pattern, schedule=1)
    ours = settings.prune(weight, known, counts, seed=3)
    given_mask = replace(settings, mask=WandaPruner(pattern=pattern)).prune(
        weight, known, counts, seed=3
    )
    wanda = WandaPruner(pattern=pattern).prune(weight, known, counts, seed=3)
    for count in counts:
        assert torch.equal(ours.at(weight, count) == 0, wanda.at(weight, count) == 0)
        assert torch.equal(ours.at(weight, count), given_mask.at(weight, count))


@given(st.integers(1, 6), st.integers(1, 7), st.floats(0, 1), st.integers(0, 99))
def test_rows_lose_what_the_removal_order_says(
    rows: int, columns: int, share: float, seed: int
) -> None:
    score = draw_gaussian(rows, columns, seed=seed).abs().round(decimals=1)
    zero = draw_gaussian(rows, columns, seed=seed + 1) > 0.7
    number = max(int(zero.sum()), int(share * (zero.numel() - 1)))
    if number == zero.numel():
        return
    keys = build_sort_keys(score, zero, draw_tie_breaks(score.shape, seed, score.device))
    removed = _choose_smallest_of_rows(keys, zero.sum(dim=1), number)
    order = compute_removal_order(score, zero, Pattern.parse("row"), seed)
    expected = torch.zeros(zero.numel(), dtype=torch.bool)
    expected[order[:number]] = True
    assert torch.equal(removed.flatten(), expected)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_order_of_methods(seed: int, share: float) -> None:
    weight, inputs = (
        draw_gaussian(48, 48, seed=seed),
        draw_correlated_inputs(400, 48, seed=seed + 50),
    )
    hessian, count = hessian_of(inputs), int(share * weight.numel())
    ladder = [
        AdmmPruner(),
        AdmmPruner(schedule=1),
        WandaPruner(pattern="layer"),
        MagnitudePruner(),
    ]
    errors = [layer_error(prune(weight, inputs, count, p), weight, hessian) for p in ladder]
    assert errors == sorted(errors)


def test_units_of_the_inputs_do_not_matter() -> None:
    # Damping is relative to each input: measuring one in other units changes nothing.
    weight, inputs = problem()
    units = 2.0 ** torch.arange(COLUMNS).remainder(9)
    ours = prune(weight, inputs, 600, AdmmPruner())
    assert_close(prune(weight / units, inputs * units, 600, AdmmPruner()) * units, ours)


def test_diagonal_hessian_changes_nothing() -> None:
    weight = draw_gaussian(ROWS, COLUMNS)
    inputs = torch.diag((0.7 * draw_gaussian(COLUMNS, seed=4)).exp())
    for pruner in (AdmmPruner(schedule=1), AdmmPruner(mask=MagnitudePruner())):
        pruned = prune(weight, inputs, 500, pruner)
        kept = pruned != 0
        assert torch.equal(pruned[kept], weight[kept])


def test_dead_inputs_go_first_and_pay_for_nothing() -> None:
    weight, inputs = problem()
    inputs[:, [5, 20, 21]] = 0
    dead = torch.zeros(COLUMNS, dtype=torch.bool).index_fill(0, torch.tensor([5, 20, 21]), True)
    for count in (10, 3 * ROWS, 3 * ROWS + 1, 500):
        pruned = prune(weight, inputs, count, AdmmPruner(schedule=1))
        assert int((pruned[:, dead] == 0).sum()) == min(count, 3 * ROWS)
        kept = pruned[:, dead] != 0
        assert torch.equal(pruned[:, dead][kept], weight[:, dead][kept])
        if count <= 3 * ROWS:
            assert torch.equal(pruned[:, ~dead], weight[:, ~dead])
    pruned = prune(weight, inputs, 500, AdmmPruner())
    assert (pruned[:, dead] == 0).all()


def test_one_inverse_serves_all_siblings_and_counts() -> None:
    known = build_evidence(problem()[1], Statistic.HESSIAN)
    for seed in range(3):
        AdmmPruner(mask=WandaPruner() if seed else None).prune(
            draw_gaussian(8, COLUMNS, seed=seed), known, [10, 50], seed=0
        )
    assert len(known.inputs._derived) == 2  # and the factor
    for other in (AdmmPruner(rho=2.0), AdmmPruner(damping=0.2)):
        variants = other.prune(draw_gaussian(8, COLUMNS), known, [100], seed=0)
        alone = prune(draw_gaussian(8, COLUMNS), problem()[1], 100, other)
        assert torch.equal(variants.at(draw_gaussian(8, COLUMNS), 100), alone)


def test_counts_together_are_counts_alone() -> None:
    weight, inputs = problem()
    known = build_evidence(inputs, Statistic.HESSIAN)
    together = AdmmPruner().prune(weight, known, [100, 600, 1100], seed=0)
    for count in together.counts:
        alone = AdmmPruner().prune(weight, known, [count], seed=0)
        assert torch.equal(together.at(weight, count), alone.at(weight, count))


def test_raised_damping_is_used_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, inputs = problem()
    monkeypatch.setattr("sparsity_search.evidence.statistics._SMALLEST_RAISE", 0.5)
    known = build_evidence(inputs[:5], Statistic.HESSIAN)
    variants = AdmmPruner(damping=0.0).prune(weight, known, [500], seed=0)
    assert variants.notes == ("damping raised from 0 to 0.5",)
    expected = prune(weight, inputs[:5], 500, AdmmPruner(damping=0.5))
    assert_close(variants.at(weight, 500), expected, rtol=1e-4, atol=1e-4)


def test_without_a_factor_the_diagonal_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, inputs = problem()
    monkeypatch.setattr("sparsity_search.evidence.statistics._inverse_cholesky", lambda *_: None)
    variants = AdmmPruner(schedule=1).prune(
        weight, build_evidence(inputs, Statistic.HESSIAN), [500], seed=0
    )
    assert variants.notes == ("the Hessian cannot be factorised: its diagonal was used",)
    expected = prune(weight, inputs, 500, WandaPruner(pattern="layer"))
    assert torch.equal(variants.at(weight, 500), expected)


@pytest.mark.parametrize("mask", ["wanda", {"name": "wanda"}, WandaPruner()])
def test_a_mask_by_name_settings_or_pruner(mask: Pruner) -> None:
    pruner = PRUNERS.create("admm", mask=mask)
    assert pruner == AdmmPruner(mask=WandaPruner()) != AdmmPruner()
    assert hash(pruner) == hash(AdmmPruner(mask=WandaPruner()))
    assert pruner.requires is Statistic.HESSIAN
    assert not pruner.needs_gradient


@dataclass(frozen=True, kw_only=True)
class ByGradient(WandaPruner):
    """A mask source that cannot do without the gradient."""

    @property
    def needs_gradient(self) -> bool:
        return True


def test_asks_for_the_gradient_if_the_mask_does() -> None:
    assert AdmmPruner(mask=ByGradient()).needs_gradient
    assert not AdmmPruner().needs_gradient


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"iterations": 14}, "schedule"),
        ({"schedule": 0}, "schedule"),
        ({"rho": 0.0}, "rho"),
        ({"rho": 1e6}, "rho"),
        ({"damping": 1.5}, "damping"),
        ({"pattern": "block"}, "pattern"),
        ({"pattern": "some"}, "pattern"),
        ({"mask": {"pattern": "row"}}, "needs a name"),
    ],
)
def test_illegal_settings(settings: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        PRUNERS.create("admm", **settings)
