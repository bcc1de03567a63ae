from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.evidence.evidence import Evidence, WeightGradient
from sparsity_search.evidence.statistics import Statistic
from sparsity_search.pruners.gblm import GBLMPruner
from sparsity_search.pruners.wanda import WandaPruner
from sparsity_search.testing.pruner import (
    build_evidence,
    build_gradient,
    draw_correlated_inputs,
    draw_gaussian,
)

ROWS, COLUMNS = 6, 20
WEIGHT, INPUTS = draw_gaussian(ROWS, COLUMNS), draw_correlated_inputs(52, COLUMNS)
COUNTS = range(0, ROWS * COLUMNS + 1, 7)


def known(inputs: Tensor, gradients: Tensor) -> Evidence:
    """Evidence of inputs ``(sequences, length, columns)`` and one gradient a sequence."""
    gradient = WeightGradient(mean=gradients.mean(0), rms=gradients.square().mean(0).sqrt())
    return build_evidence(inputs, Statistic.NORM, gradient)


def published(weight: Tensor, inputs: Tensor, gradients: Tensor, scale: float) -> Tensor:
    """Root of the mean over sequences of squared norms, and of the sum of squared gradients."""
    norm = sum(sequence.double().square().sum(0) for sequence in inputs) / len(inputs)
    gradient = sum((scale * each.double()).square() for each in gradients)
    return weight.double().abs() * (norm.sqrt() + gradient.sqrt())


@pytest.mark.parametrize("scale", [100.0, 3.0])
def test_is_the_published_score_on_the_published_text(scale: float) -> None:
    weight = draw_gaussian(4, 5)
    inputs, gradients = draw_gaussian(128, 2048, 5, seed=1), 0.1 * draw_gaussian(128, 4, 5, seed=2)
    score = GBLMPruner(scale=scale).score(weight, known(inputs, gradients))
    expected = published(weight, inputs, gradients, scale) / 2048**0.5
    torch.testing.assert_close(score.double(), expected, rtol=1e-5, atol=0)


def test_by_hand() -> None:
    weight = torch.tensor([[1.0, -2.0]])
    gradients = torch.tensor([[[0.04, 0.0]], [[-0.04, 0.0]]])  # the mean is zero
    score = GBLMPruner().score(weight, known(torch.tensor([[[2.0, 3.0]]]), gradients))
    assert score[0].tolist() == pytest.approx([3, 6])


def test_amount_of_text_does_not_matter() -> None:
    inputs, gradients = draw_gaussian(4, 8, COLUMNS), draw_gaussian(4, ROWS, COLUMNS, seed=1)
    score = GBLMPruner().score(WEIGHT, known(inputs, gradients))
    for same in (
        known(inputs.repeat(3, 1, 1), gradients.repeat(3, 1, 1)),
        known(inputs.repeat(1, 3, 1), gradients),
    ):
        torch.testing.assert_close(GBLMPruner().score(WEIGHT, same), score)


def test_is_wanda_without_gradient() -> None:
    full = build_evidence(INPUTS, Statistic.NORM, build_gradient(ROWS, INPUTS))
    wanda = WandaPruner().prune(WEIGHT, full, COUNTS, seed=0).codes
    assert torch.equal(GBLMPruner(scale=0.0).prune(WEIGHT, full, COUNTS, seed=0).codes, wanda)
    assert not torch.equal(GBLMPruner().prune(WEIGHT, full, COUNTS, seed=0).codes, wanda)


def test_gradients_alone_where_inputs_are_dead() -> None:
    gradients = draw_gaussian(3, ROWS, COLUMNS, seed=1)
    dead = known(torch.zeros(3, 4, COLUMNS), gradients)
    found = GBLMPruner().prune(WEIGHT, dead, [10 * ROWS], seed=0).at(WEIGHT, 10 * ROWS) == 0
    score = WEIGHT.abs() * gradients.norm(dim=0)
    expected = torch.zeros_like(found).scatter(1, score.argsort(dim=1)[:, :10], True)
    assert torch.equal(found, expected)


def test_needs_the_gradient() -> None:
    assert GBLMPruner().needs_gradient
    with pytest.raises(ConfigError, match="gradient"):
        GBLMPruner().prune(WEIGHT, build_evidence(INPUTS, Statistic.NORM), [3], seed=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_gradients(bad: float) -> None:
    gradients = draw_gaussian(3, ROWS, COLUMNS)
    gradients[1, 2, 3] = bad
    with pytest.raises(NumericalError, match="gradient"):
        GBLMPruner().prune(WEIGHT, known(INPUTS[None], gradients), [3], seed=0)


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_illegal_scale(scale: float) -> None:
    with pytest.raises(ConfigError, match="scale"):
        GBLMPruner(scale=scale)
