from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

import sparsity_search.allocators.flap as module
from sparsity_search.allocators.flap import FLAPAllocator, count_cut_structures
from sparsity_search.errors import ConfigError, InfeasibleBudgetError, NumericalError
from sparsity_search.evidence.statistics import Statistic
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.walk import walk
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.registry import ALLOCATORS
from sparsity_search.testing.evaluator import draw_random_tokens
from sparsity_search.testing.models import tiny_llama


@pytest.fixture
def tokens() -> Tensor:
    return draw_random_tokens(3, 8)


def subject_of(units: str = "width", exclude: str | None = None) -> PrunableModel:
    model = tiny_llama(layers=2, num_attention_heads=8, num_key_value_heads=4)
    return PrunableModel(model, exclude, units=units)


def allocated(
    subject: PrunableModel, tokens: Tensor, target: float = 0.4, metric: str = "WIFV"
) -> SparsityProfile:
    bounds = Bounds.of(subject.layout)
    return FLAPAllocator(metric=metric).allocate(subject, tokens, Budget(target), bounds)


def consumer_inputs(subject: PrunableModel, tokens: Tensor) -> dict[str, Tensor]:
    """Return what each unit's consumer reads in the dense model, in structure order, float64."""
    seen: dict[str, Tensor] = {}
    handles = []
    for name, view in subject.views.items():

        def hook(_: object, args: tuple[Tensor], name: str = name) -> None:
            seen[name] = subject.views[name].inputs(args[0]).flatten(0, 1).double()

        handles.append(view.module.register_forward_pre_hook(hook))
    subject.model(input_ids=tokens)
    for handle in handles:
        handle.remove()
    return seen


def reference(subject: PrunableModel, tokens: Tensor, metric: str) -> list[list[float]]:
    """Return the scores of each unit's structures, from their formulas."""
    found = []
    for name, inputs in consumer_inputs(subject, tokens).items():
        view = subject.views[name]
        consumer = view.structures.consumer(view.read()).double().numpy()
        x = inputs.numpy()
        score = {
            "WIFV": x.var(axis=0) * np.linalg.norm(consumer, axis=0) ** 2,
            "IFV": x.var(axis=0),
            "WIFN": np.abs(consumer).mean(axis=0) * np.sqrt((x**2).mean(axis=0)),
        }[metric]
        score = (score - score.mean()) / score.std(ddof=1)  # torch.std of lib/prune.py
        found.append(score.reshape(view.structures.count, -1).mean(axis=1).tolist())
    return found


def greedy(scores: Sequence[Sequence[float]], costs: np.ndarray, total: int) -> list[int]:
    """Return how many go of each unit: by rising score, whatever still fits."""
    ranking = sorted((s, u) for u, unit in enumerate(scores) for s in unit)
    removed = [0] * len(scores)
    for _, unit in ranking:
        if costs[unit] <= total:
            total -= int(costs[unit])
            removed[unit] += 1
    return removed


@pytest.mark.parametrize("metric", ["WIFV", "IFV", "WIFN"])
@pytest.mark.parametrize("units", ["width", "heads"])
def test_is_the_global_ranking(units: str, metric: str, tokens: Tensor) -> None:
    subject = subject_of(units)
    scores = reference(subject, tokens, metric)
    for target in (0.2, 0.55, 0.9):
        found = allocated(subject, tokens, target, metric)
        total = Budget(target).n_removed(subject.layout)
        assert list(found.removed) == greedy(scores, subject.layout.costs, total)
        assert total - subject.layout.costs.min() < found.n_removed <= total


def test_is_not_uniform(tokens: Tensor) -> None:
    subject = subject_of()
    found = allocated(subject, tokens, 0.5)
    assert np.ptp(found.sparsities) > 0.1
    assert found != Budget(0.5).uniform(subject.layout)


def test_scale_of_a_consumer_does_not_matter(tokens: Tensor) -> None:
    subject = subject_of()
    before = allocated(subject, tokens)
    subject.views["model.layers.1.mlp"].module.weight.mul_(4)  # no other unit sees its output
    assert allocated(subject, tokens) == before


def test_outliers_protect_a_layer(tokens: Tensor) -> None:
    # beside a few large scores all others lie just below the mean, above low ones elsewhere
    subject = subject_of()
    before = allocated(subject, tokens)
    subject.views["model.layers.1.mlp"].module.weight[:, :4] *= 30
    position = subject.layout.position("model.layers.1.mlp")
    assert allocated(subject, tokens).removed[position] < before.removed[position] - 8


def limits(lower: Sequence[int], upper: Sequence[int]) -> Bounds:
    return Bounds(lower=np.array(lower), upper=np.array(upper))


SCORES = [np.array([0.3, -1.0, 0.1]), np.array([-0.5, 0.2, 0.0])]


@pytest.mark.parametrize(
    ("costs", "total", "expected"),
    [
        ([1, 1], 0, [0, 0]),
        ([1, 1], 1, [1, 0]),  # order: -1, -.5', 0', .1, .2', .3
        ([1, 1], 4, [2, 2]),
        ([1, 1], 6, [3, 3]),
        ([4, 1], 4, [1, 0]),
        ([4, 1], 6, [1, 2]),
        ([4, 1], 9, [1, 3]),  # one of 4 no longer fits, a later one of 1 does
        ([4, 1], 10, [2, 2]),
        ([4, 1], 3, [0, 3]),
    ],
)
def test_cut_by_hand(costs: list[int], total: int, expected: list[int]) -> None:
    found = count_cut_structures(SCORES, np.array(costs), limits([0, 0], [3, 3]), total)
    assert found.tolist() == expected


def test_cut_within_bounds() -> None:
    ones = np.array([1, 1])
    assert count_cut_structures(SCORES, ones, limits([0, 0], [1, 3]), 4).tolist() == [1, 3]
    assert count_cut_structures(SCORES, ones, limits([3, 0], [3, 3]), 4).tolist() == [3, 1]
    assert count_cut_structures(SCORES, ones, limits([2, 2], [2, 2]), 4).tolist() == [2, 2]
    lower = limits([1, 0], [3, 3])
    assert count_cut_structures(SCORES, ones, lower, 2).tolist() == [1, 1]
    assert lower.lower.tolist() == [1, 0]  # not written to


def test_equal_scores_go_in_forward_order() -> None:
    same = [np.zeros(2)] * 3
    found = count_cut_structures(same, np.ones(3, int), limits([0] * 3, [2] * 3), 3)
    assert found.tolist() == [2, 1, 0]


@pytest.mark.parametrize("units", ["width", "heads"])
@pytest.mark.parametrize(("low", "high"), [(0.25, 0.5), (0.0, 0.5), (0.25, 1.0)])
def test_bounds(units: str, low: float, high: float, tokens: Tensor) -> None:
    subject = subject_of(units)
    bounds = Bounds.of(subject.layout, low, high)
    found = FLAPAllocator().allocate(subject, tokens, Budget(0.4), bounds)
    assert (bounds.lower <= found.removed).all()
    assert (found.removed <= bounds.upper).all()
    missing = Budget(0.4).n_removed(subject.layout) - found.n_removed
    assert 0 <= missing < subject.layout.costs[found.removed < bounds.upper].min()


@pytest.mark.parametrize("metric", ["WIFV", "IFV", "WIFN"])
def test_empty_structures_go_first(metric: str, tokens: Tensor) -> None:
    # a head without queries still takes the mean of its values: IFV does not see that it is empty
    subject, name = subject_of("heads"), "model.layers.0.self_attn"
    view = subject.views[name]
    weight = view.read()
    view.structures.bodies(weight)[:, 1] = 0
    view.write(weight)
    subject = PrunableModel(subject.model, units="heads")
    visit = next(walk(subject, tokens, Statistic.NORM, rewritten=False))
    scores = module.compute_structure_scores(subject, visit, name, metric)
    assert np.isneginf(scores).tolist() == [False, True]
    found = allocated(subject, tokens, 0.3, metric)
    assert found.removed[0] >= 1
    assert found.n_removed <= Budget(0.3).n_removed(subject.layout)


def test_excluded_units(tokens: Tensor) -> None:
    subject = subject_of(exclude=r"0\.self_attn")
    found = allocated(subject, tokens, 0.5)
    assert len(found.removed) == 3
    scores = reference(subject, tokens, "WIFV")
    total = Budget(0.5).n_removed(subject.layout)
    assert list(found.removed) == greedy(scores, subject.layout.costs, total)


def test_one_key_value_group(tokens: Tensor) -> None:
    model = tiny_llama(layers=2, num_key_value_heads=1)
    subject = PrunableModel(model, units="width")
    found = allocated(subject, tokens, 0.5)
    assert found.n_removed <= Budget(0.5).n_removed(subject.layout)
    assert list(found.removed) == greedy(
        [s if len(s) > 1 else [0.0] for s in reference(subject, tokens, "WIFV")],
        subject.layout.costs,
        Budget(0.5).n_removed(subject.layout),
    )


def test_standardised() -> None:
    found = module.standardise_scores(torch.tensor([1.0, 2.0, 6.0]).double())
    assert float(found.mean()) == pytest.approx(0, abs=1e-12)
    assert float(found.std()) == pytest.approx(1)
    assert module.standardise_scores(torch.tensor([3.0])).tolist() == [0]
    assert module.standardise_scores(torch.full((5,), 3.0)).tolist() == [0] * 5


def test_errors(tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="metric must be one of WIFV, IFV, WIFN"):
        ALLOCATORS.create("flap", metric="wifv")
    subject = subject_of()
    subject.views["model.layers.0.mlp"].module.weight[0, 0] = 1e30
    with pytest.raises(NumericalError, match="not finite"):
        allocated(subject, tokens)
    never: Callable[..., None] = lambda *_, **__: pytest.fail("the model ran")  # noqa: E731
    monkeypatch.setattr(module, "walk", never)
    bounds = Bounds.of(subject.layout, 0.0, 0.2)
    with pytest.raises(InfeasibleBudgetError):
        FLAPAllocator().allocate(subject, tokens, Budget(0.5), bounds)
