from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from sparsity_search.evidence.statistics import Statistic
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.io.identity import compute_weights_digest
from sparsity_search.models.running.gradients import compute_weight_gradients
from sparsity_search.models.running.walk import walk
from sparsity_search.testing.models import tiny_llama

UNIT = "model.layers.1.mlp.up_proj"


def loss(model: nn.Module, sequence: Tensor) -> float:
    scores = model(input_ids=sequence[None]).logits[0, :-1].double()
    return float(nn.functional.cross_entropy(scores, sequence[1:]))


def test_is_the_slope_of_the_loss(tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama(dtype=torch.float64))
    found = compute_weight_gradients(subject, tiny_tokens[:3])[UNIT]
    weight, slopes, step = subject.views[UNIT].read(), [], 1e-2
    for sequence in tiny_tokens[:3]:
        values = []
        for shift in (step, -step):
            weight[4, 5] += shift
            values.append(loss(subject.model, sequence))
            weight[4, 5] -= shift
        slopes.append((values[0] - values[1]) / (2 * step))
    slope = torch.tensor(slopes)
    assert float(found.mean[4, 5]) == pytest.approx(float(slope.mean()), rel=1e-2)
    assert float(found.rms[4, 5]) == pytest.approx(float(slope.square().mean().sqrt()), rel=1e-2)


def test_the_model_is_left_as_it_was(tiny_subject: PrunableModel, tiny_tokens: Tensor) -> None:
    before = compute_weights_digest(tiny_subject.model)
    compute_weight_gradients(tiny_subject, tiny_tokens)
    assert compute_weights_digest(tiny_subject.model) == before
    for parameter in tiny_subject.model.parameters():
        assert parameter.grad is None
        assert not parameter.requires_grad


def test_no_gradient_is_left_after_an_error(tiny_subject: PrunableModel) -> None:
    with pytest.raises(IndexError):
        compute_weight_gradients(tiny_subject, torch.full((1, 8), 10**6))
    assert not any(p.requires_grad for p in tiny_subject.model.parameters())


def test_the_walk_hands_them_out(tiny_subject: PrunableModel, tiny_tokens: Tensor) -> None:
    expected = compute_weight_gradients(tiny_subject, tiny_tokens)
    for visit in walk(tiny_subject, tiny_tokens, Statistic.NONE, rewritten=False, gradient=True):
        for unit in visit.units:
            gradient = visit.evidence[unit.name].gradient
            assert gradient is not None
            assert_close(gradient.mean, expected[unit.name].mean)
            assert gradient.mean.shape == tiny_subject.views[unit.name].read().shape


def test_what_follows_a_gated_layer(tiny_subject: PrunableModel, tiny_tokens: Tensor) -> None:
    for visit in walk(tiny_subject, tiny_tokens, Statistic.NORM, rewritten=False):
        for unit in visit.units:
            following = visit.evidence[unit.name].following
            if unit.role in ("gate", "up"):
                (down,) = [other for other in visit.units if other.role == "down"]
                assert following is visit.statistics[down.name]
            else:
                assert following is None
