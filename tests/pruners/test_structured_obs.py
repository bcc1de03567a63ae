from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.evidence.evidence import Evidence
from sparsity_search.evidence.statistics import Statistic
from sparsity_search.evidence.structures import StructureLayout
from sparsity_search.evidence.variants import StructuredVariants
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.profile import from_counts
from sparsity_search.pruners.bases.columns import EliminationSettings, eliminate
from sparsity_search.pruners.structured_obs import StructuredOBSPruner
from sparsity_search.pruners.wanda_sp import WandaSPPruner
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.testing.models import tiny_llama
from sparsity_search.testing.pruner import draw_correlated_inputs, draw_gaussian, gather_statistics

HIDDEN, DAMPING = 8, 0.01
SHAPES = [StructureLayout(count=12, inner=1, width=3), StructureLayout(count=6, inner=4, width=10)]
PRUNER = StructuredOBSPruner(damping=DAMPING)


def unit(shape: StructureLayout, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A unit's matrix and the inputs of its consumer."""
    weight = draw_gaussian(HIDDEN, shape.count * shape.width + shape.biases, seed=seed)
    return weight, draw_correlated_inputs(300, shape.count * shape.inner, seed=seed + 50)


def known(shape: StructureLayout, inputs: Tensor) -> Evidence:
    return Evidence(inputs=gather_statistics(inputs, Statistic.HESSIAN), structures=shape)


def damped(inputs: Tensor) -> Tensor:
    hessian = inputs.double().T @ inputs.double() / len(inputs)
    return hessian + DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian))


def pruned(
    shape: StructureLayout, weight: Tensor, inputs: Tensor, pruner: StructuredOBSPruner = PRUNER
) -> StructuredVariants:
    counts = range(shape.count + 1)
    return pruner.prune(weight, known(shape, inputs), counts, seed=0)


def best(consumer: Tensor, hessian: Tensor, removed: Tensor) -> Tensor:
    """Least squares in float64 on the columns that are kept."""
    kept, found = ~removed, torch.zeros_like(consumer, dtype=torch.float64)
    target = hessian[kept] @ consumer.double().T
    found[:, kept] = torch.linalg.solve(hessian[kept][:, kept], target).T
    return found


def error(change: Tensor, hessian: Tensor) -> float:
    return float((change.double() @ hessian * change.double()).sum())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("settings", [{}, {"per_step": 3}, {"linear_term": True}])
def test_consumers_are_least_squares(shape: StructureLayout, settings: dict[str, int]) -> None:
    weight, inputs = unit(shape)
    pruner = StructuredOBSPruner(**settings)  # type: ignore[arg-type]
    variants, hessian = pruned(shape, weight, inputs, pruner), damped(inputs)
    curve = pruner.error_curve(weight, known(shape, inputs))
    assert curve.dtype == torch.float64
    for count, removed in enumerate(variants.removed):
        made = variants.at(weight, count)
        consumer = shape.consumer(weight)
        oracle = best(consumer, hessian, removed.repeat_interleave(shape.inner))
        assert_close(shape.consumer(made), oracle.float(), rtol=1e-4, atol=1e-5)
        assert torch.equal(shape.bias(made), shape.bias(weight))
        found = error(oracle - consumer.double(), hessian)
        assert float(curve[count]) == pytest.approx(found, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_the_first_removal_is_the_cheapest_of_all(shape: StructureLayout, seed: int) -> None:
    weight, inputs = unit(shape, seed)
    hessian, consumer = damped(inputs), shape.consumer(weight)
    singles = torch.eye(shape.count, dtype=torch.bool).repeat_interleave(shape.inner, 1)
    costs = [error(best(consumer, hessian, one) - consumer, hessian) for one in singles]
    order = PRUNER.order(weight, known(shape, inputs), 0)
    assert int(order[0]) == min(range(shape.count), key=costs.__getitem__)
    assert float(PRUNER.error_curve(weight, known(shape, inputs))[1]) == pytest.approx(
        min(costs), rel=1e-4
    )


@pytest.mark.parametrize("seed", range(4))
def test_beats_scores_that_see_no_correlation(seed: int) -> None:
    shape = StructureLayout(count=48, inner=1, width=3)
    weight, inputs = unit(shape, seed)
    hessian, counts = damped(inputs), [12, 24, 36]
    ours = PRUNER.prune(weight, known(shape, inputs), counts, seed=0)
    scored = WandaSPPruner().prune(weight, known(shape, inputs), counts, seed=0)
    for count in counts:
        consumer = shape.consumer(weight)
        errors = [
            error(shape.consumer(v.at(weight, count)) - consumer, hessian) for v in (ours, scored)
        ]
        masked = best(consumer, hessian, scored.removed[counts.index(count)])
        refitted = error(masked - consumer, hessian)
        assert errors[0] <= refitted * (1 + 1e-6)  # the sets may be the same
        assert refitted < errors[1]


@pytest.mark.parametrize("linear_term", [False, True])
def test_dead_structures_go_first_and_cost_nothing(linear_term: bool) -> None:
    shape = SHAPES[1]
    weight, inputs = unit(shape)
    inputs[:, 4:8] = 0  # all of structure 1
    inputs[:, 9] = 0  # some of structure 2
    pruner = StructuredOBSPruner(linear_term=linear_term)
    variants = pruned(shape, weight, inputs, pruner)
    assert variants.removed[1].nonzero().tolist() == [[1]]
    curve = pruner.error_curve(weight, known(shape, inputs))
    assert curve[1] == 0
    assert curve[2] > 0
    made = variants.at(weight, 1)
    kept = [0, 2, 3, 4, 5]
    assert torch.equal(shape.bodies(made)[:, kept], shape.bodies(weight)[:, kept])
    # what a kept structure holds on a dead input stays as it is
    for count in range(1, shape.count):
        if not variants.removed[count, 2]:
            consumer = shape.consumer(variants.at(weight, count))
            assert torch.equal(consumer[:, 9], shape.consumer(weight)[:, 9])


def test_empty_structures_go_before_all_others() -> None:
    shape = SHAPES[0]
    weight, inputs = unit(shape)
    inputs[:, 2] = 0
    bodies = shape.bodies(weight)
    bodies[:, 5] = 0
    bodies[:, 7, : shape.inner] = 0  # its makers are not zero: it is no empty structure
    evidence = known(shape, inputs)
    variants = PRUNER.prune(weight, evidence, range(5), seed=0)
    assert variants.removed[1].nonzero().flatten().tolist() == [5]
    assert variants.removed[3].nonzero().flatten().tolist() == [2, 5, 7]
    assert torch.equal(variants.at(weight, 1), weight)
    curve = PRUNER.error_curve(weight, evidence)
    assert (curve[:4] == 0).all()
    assert curve[4] > 0


def test_bias_and_makers_stay() -> None:
    shape = SHAPES[1]
    weight, inputs = unit(shape)
    made = pruned(shape, weight, inputs).at(weight, 3)
    kept = ~shape.empty(made)
    assert int(kept.sum()) == 3
    makers = shape.bodies(made)[:, kept, shape.inner :]
    assert torch.equal(makers, shape.bodies(weight)[:, kept, shape.inner :])


def test_fewer_per_step_is_better() -> None:
    shape = StructureLayout(count=48, inner=1, width=3)
    weight, inputs = unit(shape)
    evidence = known(shape, inputs)
    orders = [
        StructuredOBSPruner(per_step=k).order(weight, evidence, 0).tolist() for k in (1, 12, 48)
    ]
    assert len({tuple(order) for order in orders}) == 3
    curves = [StructuredOBSPruner(per_step=k).error_curve(weight, evidence) for k in (1, 48)]
    assert float(curves[0].sum()) < float(curves[1].sum())


def test_the_linear_term_is_that_of_the_greedy_order() -> None:
    shape = SHAPES[0]
    weight, inputs = unit(shape)
    evidence, hessian = known(shape, inputs), damped(inputs)
    for on in (False, True):
        order = StructuredOBSPruner(linear_term=on).order(weight, evidence, 0)
        how = EliminationSettings(linear_term=on)
        expected = eliminate(shape.consumer(weight), hessian, shape.count, how).order
        assert torch.equal(order, expected)
        # the first step in full: half the quadratic cost, and the product with H w
        inverse, w = torch.linalg.inv(hessian), shape.consumer(weight).double()
        costs = w.square().sum(0) / inverse.diagonal()
        scores = costs / 2 + (w * (w @ hessian)).sum(0) if on else costs
        assert int(order[0]) == int(scores.argmin())


def test_damping_is_told() -> None:
    shape = SHAPES[0]
    weight, inputs = unit(shape)
    assert pruned(shape, weight, inputs).notes == ()
    evidence = known(shape, inputs)
    evidence.inputs._derived.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparsity_search.evidence.statistics._inverse_cholesky", lambda *_: None)
        variants = PRUNER.prune(weight, evidence, [5], seed=0)
    assert variants.notes == ("the Hessian cannot be factorised: its diagonal was used",)
    made, kept = variants.at(weight, 5), ~variants.removed[0]
    assert_close(shape.bodies(made)[:, kept], shape.bodies(weight)[:, kept])


def test_the_least_damping_copes_with_singular_inputs() -> None:
    shape = StructureLayout(count=80, inner=1, width=2)
    weight, inputs = unit(shape)
    inputs = inputs[:10].repeat(4, 1)
    inputs[:, 1::2] = inputs[:, ::2]
    pruner = StructuredOBSPruner(damping=1e-6)
    variants = pruned(shape, weight, inputs, pruner)
    assert [int(shape.empty(variants.at(weight, n)).sum()) for n in (0, 40, 80)] == [0, 40, 80]
    # a copy costs next to nothing, and ten inputs can say all that ten tokens ask
    curve = pruner.error_curve(weight, known(shape, inputs))
    assert curve[70] < 1e-3 * curve[80]


@pytest.mark.parametrize("settings", [{"per_step": 0}, {"damping": 0.0}, {"damping": 1.5}])
def test_illegal_settings(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        StructuredOBSPruner(**settings)  # type: ignore[arg-type]


def test_errors_of_the_curve() -> None:
    shape = SHAPES[0]
    weight, inputs = unit(shape)
    weight[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="NaN"):
        PRUNER.error_curve(weight, known(shape, inputs))
    with pytest.raises(ConfigError, match="structures"):
        PRUNER.error_curve(weight, Evidence(inputs=gather_statistics(inputs, Statistic.HESSIAN)))


@pytest.mark.parametrize("units", ["width", "heads"])
def test_on_a_model(units: str) -> None:
    model = tiny_llama()
    subject = PrunableModel(model, units=units)
    tokens = torch.arange(96).view(3, 32) % model.config.vocab_size
    profile = from_counts(subject.layout, [unit.count // 2 for unit in subject.layout])
    dense = model(tokens).logits
    change = []
    for pruner in (PRUNER, WandaSPPruner()):
        with subject.preserved():
            prune_sequentially(subject, profile, pruner, tokens)
            change.append(float((model(tokens).logits - dense).square().mean()))
    assert 0 < change[0] < change[1]
