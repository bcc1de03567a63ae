from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsity_search.allocators.alpha_pruning as module
from sparsity_search.allocators.alpha_pruning import (
    AlphaPruningAllocator,
    compute_eigenvalues,
    fit_tail_exponent,
    scale_to_alphas,
)
from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.registry import ALLOCATORS
from sparsity_search.testing.models import tiny_llama

NOTHING = torch.empty(0, 0)


def allocated(
    subject: PrunableModel, target: float = 0.6, bounds: Bounds | None = None, **settings: Any
) -> SparsityProfile:
    bounds = bounds or Bounds.of(subject.layout)
    return AlphaPruningAllocator(**settings).allocate(subject, NOTHING, Budget(target), bounds)


def matrix(seed: int, rows: int = 24, columns: int = 40, decay: float = 1.0) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, rows + 1, dtype=torch.float32) ** -decay
    return torch.randn(rows, columns, generator=source) * scale[:, None]


def pareto(exponent: float, n: int, seed: int = 0) -> np.ndarray:
    """Return a sample whose density falls with a power, by inversion."""
    uniform = np.random.default_rng(seed).random(n)
    return np.asarray((1 - uniform) ** (-1 / (exponent - 1)))


def reference(e: np.ndarray, tail: str, compat: bool = False) -> float:
    """Return the exponent with plain loops, from the formulas."""
    e = np.sort(e)
    size, alphas, distances = len(e), [], []
    counts, edges = np.histogram(np.log10(e), 100)
    peak = 10 ** edges[counts.argmax()]
    low = math.log10(0.95 * peak) if compat else 0.95 * peak
    for i in range(size - 1):
        n = size - i
        alphas.append(1 + n / (sum(math.log(x) for x in e[i:]) - n * math.log(e[i])))
        worst = max(
            abs(1 - (e[k] / e[i]) ** (1 - alphas[i]) - (k - i) / n) for k in range(i, size)
        )
        outside = tail == "peak" and not low <= e[i] <= 1.5 * peak
        distances.append(math.inf if outside else worst)
    return alphas[size // 2 if tail == "mid" else int(np.argmin(distances))]


@pytest.mark.parametrize("exponent", [2.0, 3.0, 5.0])
def test_golden_hill_of_a_pareto_sample(exponent: float) -> None:
    found = fit_tail_exponent(pareto(exponent, 20_000))
    assert found == pytest.approx(exponent, abs=0.05 * (exponent - 1))


def test_scan_finds_where_a_power_law_begins() -> None:
    bulk = np.random.default_rng(1).uniform(0.2, 1.0, 250)
    spectrum = np.concatenate([bulk, pareto(3.0, 250)])
    assert fit_tail_exponent(spectrum, "scan") == pytest.approx(3.0, abs=0.4)


@pytest.mark.parametrize("tail", ["mid", "scan", "peak"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_exponent_is_that_of_the_formulas(tail: str, scale: float) -> None:
    for seed in range(3):
        spectrum = compute_eigenvalues(matrix(seed)) * scale
        assert fit_tail_exponent(spectrum, tail) == pytest.approx(
            reference(spectrum, tail), rel=1e-9
        )


@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_compat_keeps_the_logarithmic_window(scale: float) -> None:
    spectrum = pareto(2.5, 60, seed=3) * scale
    found = fit_tail_exponent(spectrum, "peak", compat=True)
    assert found == pytest.approx(reference(spectrum, "peak", compat=True), rel=1e-9)


def test_scale_tells_the_fixed_window_from_the_compatible_one() -> None:
    spectra = [np.random.default_rng(seed).lognormal(0, 2, 40) for seed in (7, 8)]
    for compat in (False, True):
        found = [[fit_tail_exponent(e * c, "peak", compat) for e in spectra] for c in (0.1, 10)]
        assert np.allclose(found[0], found[1], rtol=1e-6) != compat


@pytest.mark.parametrize("tail", ["mid", "scan", "peak"])
def test_rotation_transposition_and_scale_change_nothing(tail: str) -> None:
    weight = matrix(0).double()
    rows, columns = (
        torch.linalg.qr(matrix(i, n, n, 0).double())[0] for i, n in ((1, 24), (2, 40))
    )
    expected = fit_tail_exponent(compute_eigenvalues(weight), tail)
    for same in (rows @ weight @ columns, weight.T, 1e-4 * weight):
        assert fit_tail_exponent(compute_eigenvalues(same), tail) == pytest.approx(
            expected, rel=1e-6
        )


def test_two_eigenvalues_have_a_closed_form() -> None:
    assert fit_tail_exponent(np.array([1.0, math.e])) == pytest.approx(3.0)
    assert fit_tail_exponent(np.array([1.0, math.e]), "scan") == pytest.approx(3.0)
    assert math.isnan(fit_tail_exponent(np.array([2.0])))
    assert math.isnan(fit_tail_exponent(np.array([])))


@pytest.mark.parametrize("tail", ["mid", "scan", "peak"])
def test_a_flat_spectrum_is_finite_and_the_lightest(tail: str) -> None:
    assert fit_tail_exponent(np.full(9, 0.3), tail) == pytest.approx(1e6, rel=0.01)


def test_eigenvalues_are_squares_of_singular_values_without_zeros() -> None:
    weight = matrix(4)
    singular = np.linalg.svd(weight.double().numpy(), compute_uv=False)
    np.testing.assert_allclose(compute_eigenvalues(weight), np.sort(singular**2), rtol=1e-9)
    np.testing.assert_allclose(compute_eigenvalues(weight.T), np.sort(singular**2), rtol=1e-9)
    weight[5:12] = 0
    weight[13] = weight[12]
    assert len(compute_eigenvalues(weight)) == 24 - 8
    assert not len(compute_eigenvalues(torch.zeros(3, 5)))


@pytest.mark.parametrize(
    ("golden", "golden_spread", "predicted", "spread"),
    [
        ((0.7100, 0.5680, 0.8521), 0.2, (0.7152, 0.5006, 0.9297), 0.3),  # LLaMA-7B
        ((0.6727, 0.5381, 0.8072), 0.2, (0.6598, 0.4619, 0.8578), 0.3),  # LLaMA-2-7B
    ],
)
def test_golden_maps(
    golden: tuple[float, float, float],
    golden_spread: float,
    predicted: tuple[float, float, float],
    spread: float,
) -> None:
    """Only the mean place of the exponents matters: one row of the table gives the other."""
    place = (0.7 / golden[0] - (1 - golden_spread)) / (2 * golden_spread)
    rest = (100 * place - 1) / 98  # of 100 equal blocks one lies at 0, and one at 1
    alphas = 2 + 2.2 * np.array([0.0, 1.0] + [rest] * 98)
    found = scale_to_alphas(alphas, np.full(100, 7), 0.7, spread)
    assert found.min() == pytest.approx(predicted[1], abs=2e-4)
    assert found.max() == pytest.approx(predicted[2], abs=2e-4)
    assert found.min() / (1 - spread) == pytest.approx(predicted[0], abs=2e-4)


def test_sparsities_may_exceed_one_and_the_projection_clips_them() -> None:
    # LLaMA-7B at 0.8 with spread 0.3: 1.0625
    place = (0.7 / 0.7152 - 0.7) / 0.6
    alphas = np.array([0.0, 1.0] + [(100 * place - 1) / 98] * 98)
    assert scale_to_alphas(alphas, np.full(100, 7), 0.8, 0.3).max() == pytest.approx(
        1.0625, abs=2e-4
    )
    subject = differing()
    found = allocated(subject, 0.9, spread=0.6)
    assert found.sparsities.max() == 1.0
    assert found.n_removed == Budget(0.9).n_removed(subject.layout)


@settings(max_examples=60)
@given(
    alphas=st.lists(st.floats(1.5, 9), min_size=2, max_size=9),
    spread=st.floats(0, 0.9),
    target=st.floats(0.05, 0.95),
    data=st.data(),
)
def test_map(alphas: list[float], spread: float, target: float, data: st.DataObject) -> None:
    given_ = np.round(alphas, 3)
    sizes = np.array([data.draw(st.integers(1, 999)) for _ in alphas])
    found = scale_to_alphas(given_, sizes, target, spread)
    assert sizes @ found == pytest.approx(target * sizes.sum())
    ratio = (1 + spread) / (1 - spread) if np.ptp(given_) else 1.0
    assert found.max() / found.min() == pytest.approx(ratio)
    order = given_.argsort(kind="stable")
    assert (np.diff(found[order]) >= -1e-12).all()  # lighter tails are sparser
    np.testing.assert_allclose(scale_to_alphas(3 * given_ + 1, sizes, target, spread), found)


def differing() -> PrunableModel:
    """A model of four blocks whose spectra fall differently fast."""
    model = tiny_llama(layers=4)
    subject = PrunableModel(model)
    for i, (unit, view) in enumerate(zip(subject.layout, subject.views.values(), strict=True)):
        rows, columns = view.read().shape
        view.write(matrix(i, rows, columns, decay=[0.2, 1.0, 0.6, 0.0][unit.block]))
    return subject


def exponents(subject: PrunableModel) -> np.ndarray:
    spectra = [
        np.linalg.svd(view.read().double().numpy(), compute_uv=False) ** 2
        for view in subject.views.values()
    ]
    return np.array([reference(spectrum, "mid") for spectrum in spectra])


@pytest.mark.parametrize("per", ["block", "linear"])
@pytest.mark.parametrize("target", [0.3, 0.7])
def test_profile(per: str, target: float) -> None:
    subject = differing()
    alphas = exponents(subject)
    if per == "block":
        alphas = np.repeat(alphas.reshape(4, 7).mean(axis=1), 7)
    rates = 0.7 + 0.6 * (alphas - alphas.min()) / np.ptp(alphas)
    counts = subject.layout.counts
    expected = rates * target * counts.sum() / (counts @ rates)
    assert expected.max() < 1
    found = allocated(subject, target, per=per).sparsities
    np.testing.assert_allclose(found, expected, atol=1.5 / 512)


def test_heavier_tails_stay_denser() -> None:
    found = allocated(differing()).grouped("block")
    assert sorted(found, key=lambda block: found[block]) == [1, 2, 0, 3]


def test_permuted_blocks_permute_the_profile() -> None:
    subject = differing()
    before = allocated(subject).sparsities.reshape(4, 7)
    views, order = list(subject.views.values()), [2, 0, 3, 1]
    weights = [view.read().clone() for view in views]
    for i, view in enumerate(views):
        view.write(weights[7 * order[i // 7] + i % 7])
    np.testing.assert_allclose(
        allocated(subject).sparsities.reshape(4, 7), before[order], atol=1 / 512
    )


@pytest.mark.parametrize("per", ["block", "linear"])
def test_equal_spectra_give_the_uniform_profile(per: str) -> None:
    subject = PrunableModel(tiny_llama())
    for view in subject.views.values():  # orthogonal rows or columns: all spectra are flat
        rows, columns = view.read().shape
        tall = torch.linalg.qr(matrix(0, max(rows, columns), min(rows, columns), 0))[0]
        view.write(tall if rows >= columns else tall.T)
    assert allocated(subject, 0.37, per=per) == Budget(0.37).uniform(subject.layout)
    assert allocated(differing(), 0.37, spread=0.0) == Budget(0.37).uniform(differing().layout)


@pytest.mark.parametrize("per", ["block", "linear"])
def test_empty_matrices_do_not_spoil_the_others(per: str) -> None:
    subject = differing()
    view = subject.views[subject.layout[9].name]
    view.write(torch.zeros_like(view.read()))
    subject = PrunableModel(subject.model)
    found = allocated(subject, 0.6, per=per)
    assert found.removed[9] == subject.layout.counts[9]
    assert found.n_removed == Budget(0.6).n_removed(subject.layout)
    alphas = np.array(
        [fit_tail_exponent(compute_eigenvalues(v.read())) for v in subject.views.values()]
    )
    known = ~np.isnan(alphas)
    assert np.flatnonzero(~known).tolist() == [9]
    if per == "block":
        alphas = np.repeat([np.nanmean(block) for block in alphas.reshape(4, 7)], 7)
    alphas[9] = np.nanmean(alphas) if per == "linear" else alphas[8]
    wanted = scale_to_alphas(alphas, subject.layout.counts, 0.6, 0.3)
    # the projection moves all others by one constant
    assert np.ptp((found.sparsities - wanted)[known]) < 2 / 512


@pytest.mark.parametrize("units", ["width", "heads"])
def test_structures_have_the_mean_of_their_linears(
    units: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = PrunableModel(differing().model, units=units)
    seen: list[tuple[int, ...]] = []
    real = module.compute_eigenvalues
    monkeypatch.setattr(
        module, "compute_eigenvalues", lambda w: (seen.append(tuple(w.shape)), real(w))[1]
    )
    found = allocated(subject, 0.5)
    linears = 7 if units == "width" else 5  # keys and values stay where query heads go
    assert len(seen) == 4 * linears
    # a narrow model has few structures, and rounding is coarse: only the ends are certain
    blocks = found.grouped("block")
    assert blocks[1] < blocks[3]


def test_weights_must_be_finite() -> None:
    with pytest.raises(NumericalError, match="not finite"):
        compute_eigenvalues(torch.tensor([[1.0, float("nan")]]))
    assert not AlphaPruningAllocator.needs_text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tail": "top"}, "tail must be one of mid, scan, peak"),
        ({"per": "unit"}, "per must be one of block, linear"),
        ({"compat": True}, "compat is about tail: peak only"),
        ({"spread": 1.0}, r"spread must lie in \[0, 1\)"),
        ({"spread": -0.1}, r"spread must lie in \[0, 1\)"),
    ],
)
def test_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ALLOCATORS.create("alpha_pruning", **settings)
