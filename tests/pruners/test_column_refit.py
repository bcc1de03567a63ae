from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.evidence.evidence import Evidence
from sparsity_search.evidence.statistics import Statistic
from sparsity_search.evidence.structures import StructureLayout
from sparsity_search.evidence.variants import RankedVariants, StructuredVariants, Variants
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.pruners.bases.columns import ColumnFit
from sparsity_search.pruners.bases.structured import StructuredPruner, get_structure_layout
from sparsity_search.pruners.column_refit import ColumnRefitPruner
from sparsity_search.pruners.structured_obs import StructuredOBSPruner
from sparsity_search.pruners.wanda_sp import WandaSPPruner
from sparsity_search.registry import PRUNERS
from sparsity_search.testing.pruner import draw_correlated_inputs, draw_gaussian, gather_statistics

SHAPE = StructureLayout(count=8, inner=3, width=7)
DAMPING = 0.02


@dataclass(frozen=True, kw_only=True)
class Hopping(Pruner):
    """Removes the ``count`` structures from place ``count · step`` on: no set holds another."""

    units: ClassVar[tuple[str, ...]] = ("width",)
    step: int = 1

    @property
    def needs_gradient(self) -> bool:
        return True

    def prune(
        self, weight: Tensor, evidence: Evidence, counts: Sequence[int], *, seed: int
    ) -> Variants:
        shape = get_structure_layout(evidence)
        places = torch.arange(shape.count)
        sets = [(places - count * self.step) % shape.count < count for count in counts]
        return StructuredVariants(
            counts=tuple(counts), notes=("hop",), structures=shape, removed=torch.stack(sets)
        )


@dataclass(frozen=True, kw_only=True)
class Backwards(StructuredPruner):
    """Removes the last structure first, and does not care whether it is empty."""

    def order(self, weight: Tensor, evidence: Evidence, seed: int) -> Tensor:
        return torch.arange(get_structure_layout(evidence).count).flip(0)


@dataclass(frozen=True, kw_only=True)
class Liar(Hopping):
    """Says that it removes structures, and stores something else."""

    def prune(
        self, weight: Tensor, evidence: Evidence, counts: Sequence[int], *, seed: int
    ) -> Variants:
        return RankedVariants(counts=tuple(counts), codes=torch.zeros_like(weight))


def problem(seed: int = 0) -> tuple[Tensor, Evidence, Tensor]:
    """A unit, what is known of it, and the damped Hessian in float64."""
    inputs = draw_correlated_inputs(200, SHAPE.count * SHAPE.inner, seed=seed + 50)
    hessian = inputs.double().T @ inputs.double() / len(inputs)
    hessian += DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian))
    weight = draw_gaussian(10, SHAPE.count * SHAPE.width + 1, seed=seed)
    return (
        weight,
        Evidence(inputs=gather_statistics(inputs, Statistic.HESSIAN), structures=SHAPE),
        hessian,
    )


def best(weight: Tensor, hessian: Tensor, removed: Tensor) -> Tensor:
    """The least-squares consumer without some structures, by the normal equations."""
    kept = ~removed.repeat_interleave(SHAPE.inner)
    consumer = SHAPE.consumer(weight).double()
    found = torch.zeros_like(consumer)
    found[:, kept] = torch.linalg.solve(hessian[kept][:, kept], hessian[kept] @ consumer.T).T
    return found


def error(weight: Tensor, made: Tensor, hessian: Tensor) -> float:
    change = (SHAPE.consumer(made) if made.shape == weight.shape else made) - SHAPE.consumer(
        weight
    )
    return float((change.double() @ hessian * change.double()).sum())


@pytest.mark.parametrize(
    "mask", ["wanda_sp", {"name": "structured_obs", "per_step": 2}, Hopping()]
)
def test_refits_the_sets_of_any_pruner_of_structures(mask: Any) -> None:
    weight, evidence, hessian = problem()
    pruner = PRUNERS.create("column_refit", mask=mask, damping=DAMPING)
    assert isinstance(pruner.mask, Pruner)
    counts = range(SHAPE.count + 1)
    found = pruner.prune(weight, evidence, counts, seed=0)
    source = pruner.mask.prune(weight, evidence, counts, seed=0)
    for count in counts:
        made = found.at(weight, count)
        removed = SHAPE.empty(source.at(weight, count))
        assert torch.equal(SHAPE.empty(made), removed)
        oracle = best(weight, hessian, removed)
        assert_close(SHAPE.consumer(made), oracle.float(), rtol=1e-4, atol=1e-5)
        others = SHAPE.bodies(made)[:, ~removed, SHAPE.inner :]
        assert torch.equal(others, SHAPE.bodies(weight)[:, ~removed, SHAPE.inner :])
        assert torch.equal(SHAPE.bias(made), SHAPE.bias(weight))


@pytest.mark.parametrize("seed", range(3))
def test_is_better_than_the_mask_alone(seed: int) -> None:
    weight, evidence, hessian = problem(seed)
    counts = range(1, SHAPE.count)
    found = ColumnRefitPruner(damping=DAMPING).prune(weight, evidence, counts, seed=0)
    masked = WandaSPPruner().prune(weight, evidence, counts, seed=0)
    errors = [[error(weight, v.at(weight, n), hessian) for n in counts] for v in (found, masked)]
    assert all(ours < theirs for ours, theirs in zip(*errors, strict=True))
    assert errors[0] == sorted(errors[0])
    curve = ColumnRefitPruner(damping=DAMPING).error_curve(weight, evidence)
    assert_close(curve[1:-1].tolist(), errors[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("mask", "factors"), [(WandaSPPruner(), 1), (Hopping(), 5)])
def test_nested_levels_share_one_factor(
    mask: Pruner, factors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, of = [], ColumnFit.of
    monkeypatch.setattr(ColumnFit, "of", lambda *a: made.append(1) or of(*a))
    weight, evidence, _ = problem()
    ColumnRefitPruner(mask=mask).prune(weight, evidence, range(6), seed=0)
    assert len(made) == factors


def test_curve_of_the_greedy_order_is_that_of_structured_obs() -> None:
    weight, evidence, _ = problem()
    SHAPE.bodies(weight)[:, 4] = 0
    curves = [
        p.error_curve(weight, evidence)
        for p in (ColumnRefitPruner(mask=StructuredOBSPruner()), StructuredOBSPruner())
    ]
    assert_close(*curves, rtol=1e-10, atol=0)
    assert curves[0].tolist()[:2] == [0, 0]
    assert float(ColumnRefitPruner().error_curve(weight, evidence)[-1]) == pytest.approx(
        float(curves[0][-1])
    )


def test_curve_of_a_source_with_its_own_prune() -> None:
    weight, evidence, _ = problem()
    hessian = evidence.inputs.damped_hessian(DAMPING).double()  # statistics are float32
    with pytest.raises(ConfigError, match="not nested"):
        ColumnRefitPruner(mask=Hopping()).error_curve(weight, evidence)
    pruner = ColumnRefitPruner(mask=Hopping(step=0), damping=DAMPING)
    curve = pruner.error_curve(weight, evidence)
    for count in range(SHAPE.count + 1):
        removed = torch.arange(SHAPE.count) < count
        found = error(weight, best(weight, hessian, removed), hessian)
        assert float(curve[count]) == pytest.approx(found, rel=1e-6, abs=1e-9)


def test_empty_structures_leave_the_weight_as_it_is() -> None:
    weight, evidence, _ = problem()
    SHAPE.bodies(weight)[:, [0, 6]] = 0
    found = ColumnRefitPruner(damping=DAMPING).prune(weight, evidence, [0, 1, 2, 3], seed=0)
    for count in (0, 1, 2):
        assert torch.equal(found.at(weight, count), weight)
    assert int(SHAPE.empty(found.at(weight, 3)).sum()) == 3


def test_the_curve_is_that_of_the_variants_whatever_the_order() -> None:
    weight, evidence, hessian = problem()
    SHAPE.bodies(weight)[:, [0, 3]] = 0
    pruner, counts = ColumnRefitPruner(mask=Backwards(), damping=DAMPING), range(SHAPE.count + 1)
    found, curve = (
        pruner.prune(weight, evidence, counts, seed=0),
        pruner.error_curve(weight, evidence),
    )
    errors = [error(weight, found.at(weight, count), hessian) for count in counts]
    assert_close(curve.tolist(), errors, rtol=1e-4, atol=1e-6)


def test_notes_and_needs_are_those_of_both() -> None:
    weight, evidence, _ = problem()
    pruner = ColumnRefitPruner(mask=Hopping())
    assert pruner.needs_gradient
    assert not ColumnRefitPruner().needs_gradient
    assert pruner.requires is Statistic.HESSIAN
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparsity_search.evidence.statistics._inverse_cholesky", lambda *_: None)
        notes = pruner.prune(weight, evidence, [3], seed=0).notes
    assert notes == ("hop", "the Hessian cannot be factorised: its diagonal was used")


def test_updated_weights_must_fit_the_storage() -> None:
    inputs = draw_gaussian(60, 1).expand(60, SHAPE.count * SHAPE.inner) + 0.01 * draw_gaussian(
        60, SHAPE.count * SHAPE.inner, seed=1
    )
    evidence = Evidence(inputs=gather_statistics(inputs, Statistic.HESSIAN), structures=SHAPE)
    weight = torch.full((4, SHAPE.count * SHAPE.width + 1), 6e4, dtype=torch.float16)
    with pytest.raises(NumericalError, match="range of"):
        ColumnRefitPruner().prune(weight, evidence, [6], seed=0)


@pytest.mark.parametrize("mask", ["wanda", "drop", "magnitude"])
def test_a_pruner_of_other_things_is_refused(mask: str) -> None:
    with pytest.raises(
        ConfigError, match=f"(?i)mask must be a pruner of width or heads.*not {mask}"
    ):
        PRUNERS.create("column_refit", mask=mask)


def test_illegal_settings() -> None:
    with pytest.raises(ConfigError, match="damping"):
        ColumnRefitPruner(damping=-1.0)
    with pytest.raises(ConfigError, match="needs a name"):
        PRUNERS.create("column_refit", mask={"damping": 0.1})
    weight, evidence, _ = problem()
    with pytest.raises(ConfigError, match="must remove structures"):
        ColumnRefitPruner(mask=Liar()).prune(weight, evidence, [1], seed=0)
