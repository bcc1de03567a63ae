from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.evidence.evidence import Evidence, WeightGradient
from sparsity_search.evidence.statistics import InputStatistics, Statistic
from sparsity_search.evidence.structures import StructureLayout
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.anatomy.views import StructuredView
from sparsity_search.models.running.walk import walk
from sparsity_search.pruners.taylor import TaylorPruner
from sparsity_search.registry import PRUNERS
from sparsity_search.testing.evaluator import draw_random_tokens
from sparsity_search.testing.models import tiny_llama
from sparsity_search.testing.pruner import draw_gaussian

SHAPE = StructureLayout(count=7, inner=2, width=5)
WEIGHT = draw_gaussian(6, 36)
GRADIENTS = draw_gaussian(4, 6, 36, seed=1) * draw_gaussian(36, seed=2).exp()  # one a sequence


def known(gradients: Tensor, shape: StructureLayout = SHAPE) -> Evidence:
    gradient = WeightGradient(mean=gradients.mean(0), rms=gradients.square().mean(0).sqrt())
    inputs = InputStatistics(0, Statistic.NONE)
    return Evidence(inputs=inputs, gradient=gradient, structures=shape)


def order(weight: Tensor, evidence: Evidence, form: str = "first") -> list[int]:
    shape = evidence.structures
    assert shape is not None
    variants = TaylorPruner(form=form).prune(weight, evidence, range(shape.count + 1), seed=0)
    assert variants.consumers is None
    assert variants.biases is None
    return variants.removed.sum(0).argsort(descending=True).tolist()


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("first", [2, 1, 0]),  # 2+2, 3+0, 1.5+1
        ("vector", [0, 2, 1]),  # 0, 3, 2.5
        ("second", [2, 0, 1]),  # 4+4, 9, 2.25+1
        ("mixed", [2, 0, 1]),  # |2-2| + |-2-2|, |-3-4.5|, |1.5-1.125| + |1-0.5|
    ],
)
def test_by_hand(form: str, expected: list[int]) -> None:
    # columns are vectors; each structure is one, and a bias stands behind them
    weight = torch.tensor([[1.0, -1.0, 3.0, 5.0], [-2.0, 2.0, 0.5, 5.0]])
    gradient = torch.tensor([[[2.0, 3.0, 0.5, 0.0], [1.0, 0.0, 2.0, 0.0]]])
    assert order(weight, known(gradient, StructureLayout(3, 1, 1)), form) == expected


def reference(form: str, weight: Tensor, gradients: Tensor) -> list[float]:
    """Return each structure's score, weight by weight in float64."""
    scores = []
    for s in range(SHAPE.count):
        score = 0.0
        for column in range(s * SHAPE.width, (s + 1) * SHAPE.width):
            w, each = weight[:, column].double(), gradients[:, :, column].double()
            mean, fisher = each.mean(0), (each * each).mean(0)
            score += {
                "first": float((w * mean).abs().sum()),
                "vector": abs(float(w @ mean)),
                "second": float((w * w * fisher).sum()),
                "mixed": float((w * mean - w * w * fisher / 2).abs().sum()),
            }[form]
        scores.append(score)
    return scores


@pytest.mark.parametrize("form", ["first", "vector", "second", "mixed"])
@pytest.mark.parametrize("seed", range(5))
def test_sums_over_all_weights(form: str, seed: int) -> None:
    weight = draw_gaussian(6, 36, seed=10 + seed)
    expected = reference(form, weight, GRADIENTS)
    found = order(weight, known(GRADIENTS), form)
    assert found == sorted(range(SHAPE.count), key=lambda s: expected[s])


def test_forms_differ() -> None:
    orders = [order(WEIGHT, known(GRADIENTS), f) for f in ("first", "vector", "second", "mixed")]
    assert len({tuple(found) for found in orders}) == 4


def test_biases_are_no_part() -> None:
    gradients = GRADIENTS.clone()
    gradients[:, :, -1] = 1e6
    for form in ("first", "vector", "second", "mixed"):
        assert order(WEIGHT, known(gradients), form) == order(WEIGHT, known(GRADIENTS), form)


def factors(subject: PrunableModel, name: str, tokens: Tensor) -> Tensor:
    """Return ``Σ |∂L/∂s|`` over factors ``s = 1`` of all rows and columns of each structure."""
    view = subject.views[name]
    assert isinstance(view, StructuredView)
    held, handles = [], []
    for part in view.parts:
        linear: nn.Linear = part.linear
        size = linear.weight.shape[1 if part.consumer else 0]
        factor = torch.ones(size, requires_grad=True)
        if part.consumer:
            handle = linear.register_forward_pre_hook(lambda _, args, f=factor: (args[0] * f,))
        else:
            handle = linear.register_forward_hook(lambda _, args, out, f=factor: out * f)
        held.append((part, factor))
        handles.append(handle)
    logits = subject.model(input_ids=tokens).logits[:, :-1]
    nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    for handle in handles:
        handle.remove()
    total = torch.zeros(view.structures.count)
    for part, factor in held:
        assert factor.grad is not None
        total += factor.grad[part.index].abs().sum(1)
    return total


@pytest.mark.parametrize("kind", ["width", "heads"])
@pytest.mark.parametrize("part", ["mlp", "self_attn"])
def test_vectors_are_derivatives_of_their_factors(kind: str, part: str) -> None:
    tokens = draw_random_tokens(3, 8)
    name = f"model.layers.1.{part}"
    subject = PrunableModel(
        tiny_llama(layers=2, num_attention_heads=8, num_key_value_heads=4), units=kind
    )
    visits = walk(subject, tokens, Statistic.NONE, rewritten=False, gradient=True)
    (evidence,) = [visit.evidence[name] for visit in visits if visit.block == 1]
    found = order(subject.views[name].read(), evidence, "vector")
    expected = factors(subject, name, tokens)
    torch.testing.assert_close(expected[found], expected.sort().values, rtol=1e-4, atol=1e-6)
    assert expected.max() > 1.05 * expected.min()


def test_refusals() -> None:
    assert PRUNERS.create("taylor") == TaylorPruner(form="first")
    with pytest.raises(ConfigError, match=r"form must be one of first, .*, not 'third'"):
        PRUNERS.create("taylor", form="third")
    without = Evidence(inputs=InputStatistics(0, Statistic.NONE), structures=SHAPE)
    with pytest.raises(ConfigError, match="gradient"):
        TaylorPruner().prune(WEIGHT, without, [1], seed=0)
    for bad in (float("nan"), float("inf")):
        gradients = GRADIENTS.clone()
        gradients[1, 2, 3] = bad
        with pytest.raises(NumericalError, match="gradient"):
            TaylorPruner().prune(WEIGHT, known(gradients), [1], seed=0)
