from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.recording import (
    choose_positions,
    compute_slopes,
    draw_labels,
    record,
)
from sparsity_search.profiles.scores import Scores, build_count_tables
from sparsity_search.registry import PRUNERS, SENSITIVITIES
from sparsity_search.sensitivities.fisher import FisherSensitivity, compute_pair_losses
from sparsity_search.testing.evaluator import draw_random_tokens
from sparsity_search.testing.models import tiny_llama, tiny_mixtral
from tests.helpers.sensitivity_oracles import (
    log_probabilities,
    mean_divergence,
    pruned_weights,
    written,
)


def gauss_newton(subject: PrunableModel, name: str, change: Tensor, tokens: Tensor) -> float:
    """Return ``½ Σ_t Var_{y ~ p_t}(dz_t[y]) / T`` exactly, by forward-mode derivatives."""
    key, model = f"{name}.weight", subject.model
    weight = dict(model.named_parameters())[key].detach()

    def logits(moved: Tensor) -> Tensor:
        arguments = {"input_ids": tokens, "use_cache": False}
        found: Tensor = torch.func.functional_call(model, {key: moved}, (), arguments).logits
        return found

    value, moved = torch.func.jvp(logits, (weight,), (change.to(weight),))
    probabilities = value.double().softmax(-1)
    mean = (probabilities * moved.double()).sum(-1)
    variance = (probabilities * moved.double().square()).sum(-1) - mean.square()
    return float(variance.sum()) / 2 / tokens.numel()


@pytest.fixture(scope="module")
def small() -> PrunableModel:
    return PrunableModel(tiny_llama(layers=1, dtype=torch.float64, attn_implementation="eager"))


def measured(subject: PrunableModel, tokens: Tensor, name: str = "wanda", **more: Any) -> Scores:
    counts = build_count_tables(subject.layout, (0.3, 0.6))
    return FisherSensitivity(**more).measure(subject, tokens, PRUNERS.create(name), counts)


def test_many_draws_give_the_gauss_newton_form(small: PrunableModel) -> None:
    tokens, counts = draw_random_tokens(4, 6), build_count_tables(small.layout, (0.3, 0.6))
    found = measured(small, tokens, span=0, draws=60)
    ratios = []
    for (unit, levels), losses in zip(
        pruned_weights(small, tokens, PRUNERS.create("wanda"), counts), found.losses, strict=True
    ):
        dense = small.views[unit.name].read()
        expected = [gauss_newton(small, unit.name, w - dense, tokens) for w in levels]
        ratios.append(losses / expected)
    # 240 squares of about normal numbers: their mean is off by 9 %, mostly
    np.testing.assert_allclose(ratios, 1, atol=0.35)
    assert np.mean(ratios) == pytest.approx(1, abs=0.12)


def test_the_form_is_the_divergence_of_a_small_change(small: PrunableModel) -> None:
    tokens, name, step = draw_random_tokens(4, 6), "model.layers.0.mlp.up_proj", 1e-2
    dense = small.views[name].read().clone()
    change = torch.randn(dense.shape, generator=torch.Generator().manual_seed(0)).to(dense)
    before, moved = log_probabilities(small.model, tokens), []
    for sign in (1, -1):  # the third order cancels
        with written(small, name, dense + sign * step * change) as model:
            moved.append(mean_divergence(before, log_probabilities(model, tokens)))
    expected = gauss_newton(small, name, change, tokens)
    assert sum(moved) / 2 / step**2 == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("span", "positions", "number"), [(1, 5, 5), (3, 7, 6), (0, 5, 12)])
@pytest.mark.parametrize("units", ["weights", "width"])
def test_is_half_the_mean_square_of_sums(
    units: str, span: int, positions: int, number: int
) -> None:
    subject, tokens = PrunableModel(tiny_llama(layers=2), units=units), draw_random_tokens(5, 14)
    name = "wanda" if units == "weights" else "flap"
    found = measured(
        subject, tokens, name, sequences=3, length=12, span=span, positions=positions, draws=2,
        pairs=True,
    )  # fmt: skip
    assert found.pairs is not None
    text, length = tokens[:3, :12], span or 12
    kept = record(
        subject, text, choose_positions(12, positions, length),
        lambda logits, rows: draw_labels(logits, 2, 0, rows.start),
    )  # fmt: skip
    counts, entries, owners = build_count_tables(subject.layout, (0.3, 0.6)), [], []
    weights = pruned_weights(subject, tokens, PRUNERS.create(name), counts)
    for u, ((unit, levels), losses) in enumerate(zip(weights, found.losses, strict=True)):
        view, expected = subject.views[unit.name], []
        for level in levels:
            at = compute_slopes(view, level - view.read(), kept).double().numpy()
            assert len(at) == 3 * 2 * number
            sums = [at[i : i + length].sum() for i in range(0, len(at), length)]
            expected.append(np.square(sums).mean() / 2 / length)
            entries.append(sums)
            owners.append(u)
        np.testing.assert_allclose(losses, np.maximum.accumulate(expected), rtol=1e-4)
    for i, one in enumerate(entries):
        for j, other in enumerate(entries):
            both = np.square(np.add(one, other)) - np.square(one) - np.square(other)
            joint = 0.0 if owners[i] == owners[j] else both.mean() / 2 / length
            assert found.pairs[i, j] == pytest.approx(joint, rel=1e-3, abs=1e-4)


def test_together() -> None:
    rng = np.random.default_rng(0)
    samples = [rng.normal(size=(n, 8)) for n in (2, 1, 3)]
    rows, owners = np.concatenate(samples), [0, 0, 1, 2, 2, 2]
    found = compute_pair_losses(samples, 4)
    assert found.dtype == np.float32
    for i in range(6):
        for j in range(6):
            sums = sum(rows[i, k] * rows[j, k] for k in range(8))
            expected = 0 if owners[i] == owners[j] else sums / 8 / 4
            assert found[i, j] == pytest.approx(expected, abs=1e-6)


def test_order_of_the_table_does_not_mix_units(small: PrunableModel) -> None:
    tokens, pruner = draw_random_tokens(3, 8), PRUNERS.create("wanda")
    sizes = [(unit.count // (i + 2), unit.count) for i, unit in enumerate(small.layout)]
    found = FisherSensitivity().measure(small, tokens, pruner, sizes)
    assert [tuple(c) for c in found.counts] == sizes
    alone = FisherSensitivity().measure(
        small, tokens, pruner, [(unit.count,) for unit in small.layout]
    )
    np.testing.assert_allclose([x[-1] for x in found.losses], [x[0] for x in alone.losses])


def test_seeds_draw_other_labels(small: PrunableModel) -> None:
    tokens, pruner = draw_random_tokens(3, 8), PRUNERS.create("magnitude")
    counts = build_count_tables(small.layout, (0.5,))
    one, same, other = (
        np.concatenate(
            FisherSensitivity().measure(small, tokens, pruner, counts, seed=seed).losses
        )
        for seed in (1, 1, 2)
    )
    assert (one == same).all()
    assert (one != other).all()


def test_without_pairs(small: PrunableModel) -> None:
    assert measured(small, draw_random_tokens(2, 8)).pairs is None


@pytest.mark.parametrize("name", ["sequences", "length", "positions", "draws"])
def test_settings(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be at least 1, not 0"):
        SENSITIVITIES.create("fisher", **{name: 0})


def test_negative_span() -> None:
    with pytest.raises(ConfigError, match="span must not be negative, not -1"):
        SENSITIVITIES.create("fisher", span=-1)


def test_experts_are_refused(tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_mixtral())
    with pytest.raises(ConfigError, match="leave experts out"):
        measured(subject, tiny_tokens)


def test_not_finite(tiny_tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama())
    subject.views["model.layers.1.mlp.down_proj"].module.weight[0, 0] = torch.inf
    with pytest.raises(NumericalError, match="predictions are not finite"):
        measured(subject, tiny_tokens, "magnitude")
