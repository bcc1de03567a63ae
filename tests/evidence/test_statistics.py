from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import sparsity_search.evidence.statistics as module
from sparsity_search.errors import ConfigError, DataError, NumericalError
from sparsity_search.evidence.statistics import InputStatistics, Statistic
from sparsity_search.testing.pruner import draw_correlated_inputs, gather_statistics

D = 12


def damped(hessian: Tensor, damping: float) -> Tensor:
    return hessian.double() + damping * hessian.diagonal().double().mean() * torch.eye(
        len(hessian)
    )


@given(cuts=st.lists(st.integers(0, 50), max_size=6))
@pytest.mark.parametrize("statistic", [Statistic.NORM, Statistic.HESSIAN])
def test_chunks_do_not_matter(statistic: Statistic, cuts: list[int]) -> None:
    inputs = draw_correlated_inputs(50, D)
    chunked = InputStatistics(D, statistic)
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), 50], strict=True):
        chunked.add(inputs[start:stop])
    assert chunked.n_tokens == 50
    assert_close(chunked.norms(), inputs.square().mean(0).sqrt())
    if statistic is Statistic.HESSIAN:
        assert_close(chunked.hessian(), inputs.T @ inputs / 50)


def test_three_dimensions_are_tokens() -> None:
    inputs = draw_correlated_inputs(60, D)
    batched = gather_statistics(inputs.view(3, 20, D), Statistic.HESSIAN)
    assert batched.n_tokens == 60
    assert torch.equal(batched.hessian(), gather_statistics(inputs, Statistic.HESSIAN).hessian())


def test_hessian_is_symmetric_and_holds_the_norms() -> None:
    inputs = draw_correlated_inputs(100, D)
    statistics = gather_statistics(inputs, Statistic.HESSIAN)
    hessian = statistics.hessian()
    assert hessian.dtype == statistics.norms().dtype == torch.float32
    assert torch.equal(hessian, hessian.T)
    assert torch.linalg.eigvalsh(hessian).min() > -1e-6
    assert_close(hessian.diagonal().sqrt(), statistics.norms())
    assert_close(gather_statistics(inputs, Statistic.NORM).norms(), statistics.norms())


@pytest.mark.parametrize("statistic", [Statistic.NORM, Statistic.HESSIAN])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_are_taken_in_float32(statistic: Statistic, dtype: torch.dtype) -> None:
    # 1000² overflows float16, and bfloat16 cannot count 3000 equal summands.
    statistics = gather_statistics(torch.full((3000, D), 1000.0, dtype=dtype), statistic)
    assert_close(statistics.norms(), torch.full((D,), 1000.0))


@pytest.mark.parametrize("width", [255, 256, 259])  # whole, in equal parts, in unequal ones
def test_wide_products(width: int) -> None:
    inputs = torch.randn(300, width, generator=torch.Generator().manual_seed(0))
    statistics = gather_statistics(inputs[:100], Statistic.HESSIAN)
    statistics.add(inputs[100:])
    expected = inputs.double().T @ inputs.double() / 300
    assert_close(statistics.hessian(), expected.float(), rtol=1e-5, atol=1e-6)
    assert torch.equal(statistics.hessian(), statistics.hessian().T)


@pytest.mark.parametrize("n_tokens", [1, 127, 128, 300])
def test_sums_of_any_number_of_tokens(n_tokens: int) -> None:
    inputs = torch.randn(n_tokens, 5, generator=torch.Generator().manual_seed(0)) + 2
    statistics = gather_statistics(inputs, Statistic.NORM)
    assert_close(statistics.mean(), inputs.double().mean(0).float())
    assert_close(statistics.norms(), inputs.double().square().mean(0).sqrt().float())


def test_inputs_are_detached() -> None:
    statistics = gather_statistics(torch.ones(3, D, requires_grad=True), Statistic.HESSIAN)
    assert not statistics.norms().requires_grad


def test_factor_is_that_of_the_inverse() -> None:
    statistics = gather_statistics(draw_correlated_inputs(100, D), Statistic.HESSIAN)
    factor = statistics.inverse_factor(0.01)
    upper = factor.upper.double()
    assert_close(upper.T @ upper @ damped(statistics.hessian(), 0.01), torch.eye(D).double(),
                 atol=1e-4, rtol=0)  # fmt: skip
    assert torch.equal(upper, upper.triu())
    assert (upper.diagonal() > 0).all()
    assert (factor.damping, factor.fallback, bool(factor.dead.any())) == (0.01, False, False)


def test_factor_is_computed_once_for_each_damping() -> None:
    statistics = gather_statistics(draw_correlated_inputs(100, D), Statistic.HESSIAN)
    first = statistics.inverse_factor(0.01)
    assert statistics.inverse_factor(0.01) is first
    assert statistics.inverse_factor(0.1) is not first
    statistics.add(draw_correlated_inputs(100, D, seed=9))
    assert statistics.inverse_factor(0.01) is not first


def test_dead_inputs_stand_alone() -> None:
    inputs = draw_correlated_inputs(100, D)
    inputs[:, [2, 7]] = 0
    factor = gather_statistics(inputs, Statistic.HESSIAN).inverse_factor(0.01)
    alive = torch.tensor([j for j in range(D) if j not in (2, 7)])
    assert factor.dead.nonzero().flatten().tolist() == [2, 7]
    without = gather_statistics(inputs[:, alive], Statistic.HESSIAN).inverse_factor(0.01)
    assert_close(factor.upper[alive][:, alive], without.upper)
    assert (factor.upper[2, 3:] == 0).all()
    assert (factor.upper[:2, 2] == 0).all()


def test_all_inputs_dead() -> None:
    factor = gather_statistics(torch.zeros(5, D), Statistic.HESSIAN).inverse_factor(0.01)
    assert factor.dead.all()
    assert factor.upper.isfinite().all()
    assert not factor.fallback


def test_damping_is_raised_for_singular_statistics() -> None:
    factor = gather_statistics(draw_correlated_inputs(4, 40), Statistic.HESSIAN).inverse_factor(
        0.0
    )
    assert 0 < factor.damping <= 1
    assert not factor.fallback
    assert factor.upper.isfinite().all()


def test_falls_back_to_the_diagonal(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    monkeypatch.setattr(module, "_inverse_cholesky", lambda _, ridge: tried.append(ridge))
    statistics = gather_statistics(draw_correlated_inputs(100, D), Statistic.HESSIAN)
    factor = statistics.inverse_factor(0.01)
    assert_close([r / tried[0] for r in tried], [1.0, 10.0, 100.0])
    assert factor.fallback
    assert_close(factor.upper, damped(statistics.hessian(), 1.0).diagonal().rsqrt().diag().float())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("statistic", [Statistic.NORM, Statistic.HESSIAN])
def test_not_finite_is_an_error(statistic: Statistic, bad: float) -> None:
    inputs = draw_correlated_inputs(20, D)
    inputs[3, 4] = bad
    statistics = gather_statistics(inputs, statistic)
    with pytest.raises(NumericalError, match="not finite"):
        statistics.norms()
    if statistic is Statistic.HESSIAN:
        with pytest.raises(NumericalError, match="not finite"):
            statistics.inverse_factor(0.01)


def test_no_tokens_is_an_error() -> None:
    statistics = gather_statistics(torch.zeros(0, D), Statistic.HESSIAN)
    for ask in (statistics.norms, statistics.hessian, lambda: statistics.inverse_factor(0.01)):
        with pytest.raises(NumericalError, match="no tokens"):
            ask()


def test_asking_for_more_than_was_gathered_is_an_error() -> None:
    with pytest.raises(ConfigError, match="HESSIAN was asked of statistics gathered with NORM"):
        gather_statistics(torch.ones(3, D), Statistic.NORM).hessian()
    with pytest.raises(ConfigError, match="NORM was asked"):
        gather_statistics(torch.ones(3, D), Statistic.NONE).norms()


def test_wrong_width_is_an_error() -> None:
    with pytest.raises(DataError, match="width 5"):
        gather_statistics(torch.ones(3, D), Statistic.NORM).add(torch.ones(3, 5))


@pytest.mark.parametrize("statistic", [Statistic.NORM, Statistic.HESSIAN])
def test_mean_and_variance(statistic: Statistic) -> None:
    inputs = draw_correlated_inputs(90, D) + 3
    statistics = gather_statistics(inputs, statistic)
    assert_close(statistics.mean(), inputs.mean(0))
    assert_close(statistics.variance(), inputs.var(0, correction=0), rtol=1e-4, atol=1e-5)
    constant = gather_statistics(torch.full((50, D), 1000.1), statistic)
    assert (constant.variance() >= 0).all()


@pytest.mark.parametrize("damping", [0.0, 0.01, 0.5])
def test_damped_hessian_is_what_was_factorised(damping: float) -> None:
    inputs = draw_correlated_inputs(300, D)
    inputs[:, 2] = 0
    statistics = gather_statistics(inputs, Statistic.HESSIAN)
    upper = statistics.inverse_factor(damping).upper.double()
    product = statistics.damped_hessian(damping) @ upper.T @ upper
    assert_close(product, torch.eye(D, dtype=torch.float64), rtol=0, atol=2e-3)


def test_damped_hessian_of_a_singular_one() -> None:
    statistics = gather_statistics(draw_correlated_inputs(4, 40), Statistic.HESSIAN)
    assert statistics.inverse_factor(0.0).damping > 0
    torch.linalg.cholesky(statistics.damped_hessian(0.0))  # raises if it is not definite


def test_derived_is_made_once_until_tokens_are_added() -> None:
    statistics = gather_statistics(draw_correlated_inputs(20, D), Statistic.HESSIAN)
    made: list[int] = []
    for _ in range(3):
        assert statistics.derived("rank", lambda: made.append(1) or len(made)) == 1
    statistics.add(torch.ones(1, D))
    assert statistics.derived("rank", lambda: made.append(1) or len(made)) == 2


@pytest.mark.parametrize("statistic", list(Statistic))
@pytest.mark.parametrize("width", [1, D, 259])
def test_what_is_stored_tells_the_same_to_the_bit(statistic: Statistic, width: int) -> None:
    inputs = draw_correlated_inputs(600, width)
    with torch.inference_mode():  # as blocks run
        made = gather_statistics(inputs[:300], statistic)
    stored = {name: tensor.clone() for name, tensor in made.tensors().items()}
    again = InputStatistics.from_tensors(stored, statistic, made.n_tokens, "cpu")
    for _ in range(2):
        assert told(again) == told(made)
        with torch.inference_mode():
            made.add(inputs[300:])
        again.add(inputs[300:])
    assert all(
        torch.equal(stored[k], v)
        for k, v in gather_statistics(inputs[:300], statistic).tensors().items()
    )


def told(statistics: InputStatistics) -> list[object]:
    found = []
    if statistics.statistic >= Statistic.NORM:
        found += [statistics.norms(), statistics.mean(), statistics.variance()]
    if statistics.statistic is Statistic.HESSIAN:
        found += [statistics.hessian(), statistics.inverse_factor(0.01).upper]
    return [statistics.n_inputs, statistics.n_tokens, *(tensor.tolist() for tensor in found)]


def test_half_of_the_products_is_stored() -> None:
    made = gather_statistics(draw_correlated_inputs(50, 300), Statistic.HESSIAN)
    assert made.tensors()["products"].shape == (300 * 301 // 2,)


def test_a_richer_statistic_is_not_a_poorer_one_to_the_bit() -> None:
    """So that each kind is stored for itself."""
    inputs = draw_correlated_inputs(500, 64)
    both = [
        gather_statistics(inputs, statistic) for statistic in (Statistic.NORM, Statistic.HESSIAN)
    ]
    assert_close(both[0].norms(), both[1].norms())
    assert not torch.equal(both[0].norms(), both[1].norms())
