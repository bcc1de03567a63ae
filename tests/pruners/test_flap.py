from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.evidence.evidence import Evidence
from sparsity_search.evidence.fluctuation import compute_input_scores
from sparsity_search.evidence.statistics import Statistic
from sparsity_search.evidence.structures import StructureLayout
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.profile import from_counts
from sparsity_search.pruners.flap import FLAPPruner
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.registry import PRUNERS
from sparsity_search.testing.evaluator import draw_random_tokens
from sparsity_search.testing.models import tiny_llama
from sparsity_search.testing.pruner import draw_correlated_inputs, draw_gaussian, gather_statistics

SHAPE = StructureLayout(count=6, inner=3, width=7)
WEIGHT = draw_gaussian(5, 6 * 7 + 1)  # the last column is a bias
INPUTS = draw_correlated_inputs(60, 18) + 2 * draw_gaussian(18, seed=7)


def known(inputs: Tensor = INPUTS, shape: StructureLayout = SHAPE) -> Evidence:
    return Evidence(inputs=gather_statistics(inputs, Statistic.NORM), structures=shape)


def order(weight: Tensor, evidence: Evidence, **settings: Any) -> list[int]:
    """Return the structures by the count at which they go."""
    shape = evidence.structures
    assert shape is not None
    variants = FLAPPruner(**settings).prune(weight, evidence, range(shape.count + 1), seed=0)
    return variants.removed.sum(0).argsort(descending=True).tolist()


def error(count: int, **settings: Any) -> Tensor:
    """Return the change of the consumer's output, ``(tokens, hidden)`` float64."""
    made = FLAPPruner(**settings).prune(WEIGHT, known(), [count], seed=0).at(WEIGHT, count)
    change = made.double() - WEIGHT.double()
    return INPUTS.double() @ SHAPE.consumer(change).T + SHAPE.bias(change).T


@pytest.mark.parametrize(
    ("metric", "expected"), [("WIFV", [2, 1, 0]), ("IFV", [2, 0, 1]), ("WIFN", [1, 0, 2])]
)
def test_by_hand(metric: str, expected: list[int]) -> None:
    weight = torch.tensor([[5.0, 9.0, -1.0, 9.0, 2.0, 9.0, 0.0]])  # consumer 5, -1, 2
    inputs = torch.tensor([[1.0, 0.0, 10.0], [3.0, 8.0, 10.0]])  # variances 1, 16, 0
    found = order(weight, known(inputs, StructureLayout(count=3, inner=1, width=2)), metric=metric)
    assert found == expected


def test_bias_by_hand() -> None:
    weight = torch.tensor([[5.0, 9.0, -1.0, 9.0, 2.0, 9.0, 0.5]])
    inputs = torch.tensor([[1.0, 0.0, 10.0], [3.0, 8.0, 10.0]])
    evidence = known(inputs, StructureLayout(count=3, inner=1, width=2))
    variants = FLAPPruner().prune(weight, evidence, [1, 2, 3], seed=0)
    assert variants.at(weight, 1).tolist() == [[5, 9, -1, 9, 0, 0, 20.5]]
    assert variants.at(weight, 2).tolist() == [[5, 9, 0, 0, 0, 0, 16.5]]
    assert variants.at(weight, 3).tolist() == [[0, 0, 0, 0, 0, 0, 26.5]]


@pytest.mark.parametrize("metric", ["WIFV", "IFV", "WIFN"])
def test_structures_have_the_mean_of_their_inputs(metric: str) -> None:
    inputs, consumer = INPUTS.double(), SHAPE.consumer(WEIGHT).double()
    variance = (inputs - inputs.mean(0)).square().mean(0)
    columns = {
        "WIFV": variance * consumer.norm(dim=0) ** 2,
        "IFV": variance,
        "WIFN": consumer.abs().mean(0) * inputs.square().mean(0).sqrt(),
    }[metric]
    expected = columns.view(6, 3).mean(1)
    assert order(WEIGHT, known(), metric=metric) == expected.argsort().tolist()


def test_wifv_is_the_error_that_is_left() -> None:
    weight, inputs = draw_gaussian(5, 8).double(), INPUTS[:, :8].double()
    scores = compute_input_scores(
        weight.float(), gather_statistics(inputs.float(), Statistic.NORM), "WIFV"
    )
    for j in range(8):
        lost = inputs[:, j : j + 1] * weight[:, j]
        left = (lost - lost.mean(0)).square().sum(1).mean()
        assert float(scores[j]) == pytest.approx(float(left), rel=1e-4)


@pytest.mark.parametrize("metric", ["WIFV", "IFV", "WIFN"])
@pytest.mark.parametrize("count", [1, 3, 5, 6])
def test_no_mean_error_is_left(metric: str, count: int) -> None:
    with_bias = error(count, metric=metric)
    without = error(count, metric=metric, bias=False)
    assert without.mean(0).abs().min() > 1e-2
    assert with_bias.mean(0).abs().max() < 1e-5
    assert with_bias.square().mean() < without.square().mean()


def test_bias_is_the_best_constant() -> None:
    best = torch.linalg.lstsq(torch.ones(60, 1).double(), -error(3, bias=False)).solution
    made = FLAPPruner().prune(WEIGHT, known(), [3], seed=0).at(WEIGHT, 3)
    added = (SHAPE.bias(made) - SHAPE.bias(WEIGHT)).T.double()
    torch.testing.assert_close(added, best, rtol=1e-4, atol=1e-5)


def test_only_the_bias_makes_up() -> None:
    variants = FLAPPruner().prune(WEIGHT, known(), [2], seed=0)
    assert variants.consumers is None
    assert FLAPPruner(bias=False).prune(WEIGHT, known(), [2], seed=0).biases is None


def test_constant_inputs_cost_nothing() -> None:
    inputs = INPUTS.clone()
    inputs[:, 6:12] = 5.0  # structures 2 and 3
    evidence = known(inputs)
    assert set(order(WEIGHT, evidence)[:2]) == {2, 3}
    made = FLAPPruner().prune(WEIGHT, evidence, [2], seed=0).at(WEIGHT, 2)
    change = made - WEIGHT
    assert (inputs @ SHAPE.consumer(change).T + SHAPE.bias(change).T).abs().max() < 1e-4


@pytest.mark.parametrize("metric", ["WIFV", "IFV"])
def test_means_do_not_change_the_order(metric: str) -> None:
    shift = 3 * draw_gaussian(18, seed=11)
    assert order(WEIGHT, known(), metric=metric) == order(
        WEIGHT, known(INPUTS + shift), metric=metric
    )
    assert order(WEIGHT, known(), metric="WIFN") != order(
        WEIGHT, known(INPUTS + shift), metric="WIFN"
    )


def test_makers_and_bias_do_not_change_the_order() -> None:
    other = WEIGHT.clone()
    SHAPE.bodies(other)[:, :, 3:] = draw_gaussian(5, 6, 4, seed=5) * 10
    SHAPE.bias(other)[:] = 100
    assert order(other, known()) == order(WEIGHT, known())


@pytest.mark.parametrize("kind", ["width", "heads"])
@pytest.mark.parametrize("part", ["mlp", "self_attn"])
def test_mean_output_of_a_model(kind: str, part: str) -> None:
    tokens = draw_random_tokens(3, 8)
    name, seen = f"model.layers.1.{part}", []
    subject = PrunableModel(tiny_llama(layers=2), units=kind)
    consumer = subject.views[name].module
    consumer.register_forward_hook(lambda *args: seen.append(args[2].flatten(0, 1)))
    counts = [unit.count // 2 if unit.name == name else 0 for unit in subject.layout]
    profile = from_counts(subject.layout, counts)
    means = []
    for pruner in (None, FLAPPruner(), FLAPPruner(bias=False)):
        with subject.preserved():
            if pruner:
                prune_sequentially(subject, profile, pruner, tokens)
            seen.clear()
            subject.model(input_ids=tokens)
            means.append(torch.cat(seen).mean(0))
    torch.testing.assert_close(means[1], means[0], rtol=1e-4, atol=1e-5)
    assert (means[2] - means[0]).abs().max() > 1e-2


def test_bias_out_of_range() -> None:
    weight = WEIGHT.half()
    evidence = known(INPUTS + 1e6)
    with pytest.raises(NumericalError, match="leave the range of"):
        FLAPPruner().prune(weight, evidence, [3], seed=0)
    FLAPPruner(bias=False).prune(weight, evidence, [3], seed=0)


def test_huge_scores() -> None:
    with pytest.raises(NumericalError, match="not finite"):
        FLAPPruner().prune(WEIGHT * 1e20, known(), [3], seed=0)


def test_settings() -> None:
    assert PRUNERS.create("flap") == FLAPPruner(metric="WIFV", bias=True)
    with pytest.raises(ConfigError, match="metric must be one of WIFV, IFV, WIFN, not 'wanda'"):
        PRUNERS.create("flap", metric="wanda")
