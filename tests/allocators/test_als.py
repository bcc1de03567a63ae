from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor, nn

import sparsity_search.allocators.als as module
from sparsity_search.allocators.als import (
    ALSAllocator,
    compute_redundancies,
    compute_similarities,
    sampled_rows,
    solve_programme,
)
from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.registry import ALLOCATORS
from sparsity_search.testing.models import tiny_llama, tiny_mixtral


def allocated(
    subject: PrunableModel, tokens: Tensor, target: float = 0.7, **settings: Any
) -> SparsityProfile:
    return ALSAllocator(**settings).allocate(
        subject, tokens, Budget(target), Bounds.of(subject.layout)
    )


def outputs(model: nn.Module, tokens: Tensor, names: list[str]) -> list[np.ndarray]:
    """Return what modules give in one full forward pass, ``(tokens, width)`` float64."""
    seen: dict[str, np.ndarray] = {}

    def hook(name: str) -> Any:
        def take(_: nn.Module, args: Any, output: Any) -> None:
            states = output if isinstance(output, Tensor) else output[0]
            seen[name] = states.flatten(0, -2).double().numpy()

        return take

    handles = [model.get_submodule(n).register_forward_hook(hook(n)) for n in names]
    with torch.inference_mode():
        model(input_ids=tokens)
    for handle in handles:
        handle.remove()
    return [seen[name] for name in names]


def metric(x: np.ndarray, y: np.ndarray) -> float:
    """Return the redundancy metric of two activations by its formula."""
    x, y = ((v - v.mean(0)) / np.linalg.norm(v - v.mean(0), axis=0) for v in (x, y))
    return float(
        np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    )


def sums(activations: list[np.ndarray]) -> np.ndarray:
    n = range(len(activations))
    return np.array([sum(metric(activations[i], activations[j]) for j in n if j != i) for i in n])


def solved(redundancy: np.ndarray, sizes: np.ndarray, target: float, reach: float) -> np.ndarray:
    """Return what the linear programme of the paper gives."""
    found = linprog(
        np.exp(-(redundancy - 1)) * sizes,
        A_eq=[sizes],
        b_eq=[target * sizes.sum()],
        bounds=[(target - reach, target + reach)] * len(sizes),
    )
    return np.asarray(found.x)


@given(
    st.lists(
        st.tuples(st.integers(0, 60), st.integers(1, 20)),
        min_size=1,
        max_size=9,
        unique_by=lambda pair: pair[0],
    ),
    st.floats(0.05, 0.95),
    st.floats(0.01, 1),
)
def test_is_the_linear_programme(
    blocks: list[tuple[int, int]], target: float, part: float
) -> None:
    redundancy = np.array([r for r, _ in blocks]) / 10
    sizes = np.array([n for _, n in blocks], dtype=float)
    reach = part * min(target, 1 - target)
    found = solve_programme(redundancy, sizes, target, reach=reach, step=0)
    np.testing.assert_allclose(found, solved(redundancy, sizes, target, reach), atol=1e-6)
    assert found @ sizes == pytest.approx(target * sizes.sum())


def test_equal_redundancy_shares_alike() -> None:
    # the first takes 3 of 6 weights to the upper bound, the others go down together
    found = solve_programme(np.array([1.0, 5, 1]), np.array([1, 3, 2]), 0.6, reach=0.2, step=0)
    np.testing.assert_allclose(found, [0.4, 0.8, 0.4])
    # one of four to the upper bound; one of the two in the middle would be, too
    found = solve_programme(np.array([2.0, 3, 2, 1]), np.ones(4), 0.6, reach=0.2, step=0)
    np.testing.assert_allclose(found, [0.6, 0.8, 0.6, 0.4])
    found = solve_programme(np.full(5, 3.0), np.arange(1, 6), 0.37, reach=0.2, step=0.05)
    np.testing.assert_allclose(found, 0.37)


def test_granularity() -> None:
    # a third of the middle one up: at 0.5 + 0.2 * (-1/3) it would be
    redundancy, sizes = np.array([1.0, 2.0, 3.0]), np.array([2, 3, 2.5])
    exact = solve_programme(redundancy, sizes, 0.5, reach=0.2, step=0)
    assert exact.tolist() == pytest.approx([0.3, 0.5 + 0.2 * (2 * 1.25 / 3 - 1), 0.7])
    found = solve_programme(redundancy, sizes, 0.5, reach=0.2, step=0.05)
    assert found.tolist() == pytest.approx([0.3, 0.45, 0.7])
    # bounds hold where they are no multiples
    found = solve_programme(redundancy, sizes, 0.5, reach=0.18, step=0.05)
    assert found.tolist() == pytest.approx([0.32, 0.45, 0.68])


@pytest.mark.parametrize(
    ("target", "low", "high"), [(0.5, 0.3, 0.7), (0.7, 0.58, 0.82), (0.1, 0.06, 0.14)]
)
def test_bounds_follow_the_target(
    target: float, low: float, high: float, tiny_tokens: Tensor
) -> None:
    subject = PrunableModel(tiny_llama(layers=4))
    blocks = sorted(allocated(subject, tiny_tokens, target).grouped("block").values())
    assert blocks == pytest.approx([low, low, high, high], abs=1e-3)


def test_redundancy_is_the_formula() -> None:
    source = np.random.default_rng(0)
    first = source.normal(size=(40, 6)) * np.logspace(-2, 2, 6) + 3
    activations = [first, first @ source.normal(size=(6, 9)), source.normal(size=(40, 3))]
    found = compute_redundancies([compute_similarities([torch.tensor(x)]) for x in activations])
    np.testing.assert_allclose(found, sums(activations), rtol=1e-5)


def test_redundancy_of_a_rotation_is_one() -> None:
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).double()
    x = torch.linalg.qr(x - x.mean(0)).Q  # normalised already, and still so after a rotation
    turn = torch.linalg.qr(torch.arange(16.0).view(4, 4).double().sin()).Q
    found = compute_redundancies(
        [compute_similarities([x]), compute_similarities([3 * x @ turn + 1])]
    )
    np.testing.assert_allclose(found, [1, 1], atol=1e-5)


def test_orthogonal_activations_are_not_redundant() -> None:
    x = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    y = torch.tensor([[1.0, 3.0], [1.0, 3.0], [-1.0, 1.0], [-1.0, 1.0]])
    np.testing.assert_allclose(
        compute_redundancies([compute_similarities([x]), compute_similarities([y])]), 0, atol=1e-9
    )


def test_constant_features_do_not_matter() -> None:
    x = torch.randn(30, 3, generator=torch.Generator().manual_seed(1))
    more = torch.cat([x, torch.full((30, 2), 0.1)], dim=1)
    torch.testing.assert_close(
        compute_similarities([more]), compute_similarities([x]), rtol=1e-5, atol=1e-7
    )
    assert not compute_similarities([torch.full((30, 2), 0.1)]).any()


def test_parts_are_one_text() -> None:
    x = torch.randn(30, 3, generator=torch.Generator().manual_seed(2))
    assert torch.equal(compute_similarities([x[:7], x[7:]]), compute_similarities([x]))


@pytest.mark.parametrize("samples", [5, 39, 40, 1000])
def test_sampled_rows(samples: int) -> None:
    sizes = [16, 1, 16, 7]
    rows = sampled_rows(sizes, samples, seed=3)
    assert [len(r) for r in sampled_rows(sizes, 1000, 3)] == sizes
    assert sum(len(r) for r in rows) == min(samples, 40)
    for size, found in zip(sizes, rows, strict=True):
        assert found.tolist() == sorted(set(found.tolist()) & set(range(size)))
    again = sampled_rows(sizes, samples, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(rows, again, strict=True))
    if samples == 5:
        other = [r.tolist() for r in sampled_rows(sizes, samples, seed=4)]
        assert other != [r.tolist() for r in rows]


def test_between_blocks(tiny_tokens: Tensor) -> None:
    model = tiny_llama(layers=5)
    subject = PrunableModel(model)
    states = outputs(model, tiny_tokens, [f"model.layers.{i}" for i in range(5)])
    expected = solve_programme(sums(states), np.ones(5), 0.7, reach=0.12, step=0.03)
    found = allocated(subject, tiny_tokens)
    assert list(found.grouped("block").values()) == pytest.approx(expected, abs=1e-3)
    assert np.ptp(expected) == pytest.approx(0.24)


def test_within_blocks(tiny_tokens: Tensor) -> None:
    model = tiny_llama(layers=3)
    subject = PrunableModel(model)
    plain = allocated(subject, tiny_tokens, granularity=0)
    found = allocated(subject, tiny_tokens, per="linear", granularity=0)
    for block, ratio in plain.grouped("block").items():
        units = subject.units_of(int(block))
        made = outputs(model, tiny_tokens, [unit.name for unit in units])
        sizes = np.array([unit.size for unit in units])
        reach = 0.4 * min(ratio, 1 - ratio)
        expected = solve_programme(sums(made), sizes, float(ratio), reach=reach, step=0)
        places = [subject.layout.position(unit.name) for unit in units]
        np.testing.assert_allclose(found.sparsities[places], expected, atol=2e-3)
        assert np.ptp(expected) > 0.05
    assert found.grouped("block") == pytest.approx(plain.grouped("block"), abs=1e-3)


@pytest.mark.parametrize("per", ["block", "linear"])
@pytest.mark.parametrize("units", ["width", "heads"])
def test_structures(units: str, per: str, tiny_tokens: Tensor) -> None:
    model = tiny_llama(layers=4, num_attention_heads=8, num_key_value_heads=4)
    subject = PrunableModel(model, units=units)
    found = allocated(subject, tiny_tokens, 0.4, per=per)
    missing = Budget(0.4).n_removed(subject.layout) - found.n_removed
    assert 0 <= missing < subject.layout.costs.max()
    assert np.ptp(found.sparsities) > 0.1


def test_experts_of_a_mixture_share(tiny_tokens: Tensor) -> None:
    # one output for all of them: they are equally redundant
    subject = PrunableModel(tiny_mixtral())
    found = allocated(subject, tiny_tokens, 0.6, per="linear", granularity=0)
    for block in range(2):
        experts = [
            s
            for unit, s in zip(subject.layout, found.sparsities, strict=True)
            if unit.block == block and unit.role.startswith("expert")
        ]
        assert np.ptp(experts) < 2 / 256


def test_samples(tiny_subject: PrunableModel, tiny_tokens: Tensor) -> None:
    seen: list[int] = []
    original = compute_similarities

    def spy(states: list[Tensor]) -> Tensor:
        seen.append(sum(len(s) for s in states))
        return original(states)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "compute_similarities", spy)
        allocated(tiny_subject, tiny_tokens, samples=20)
        allocated(tiny_subject, tiny_tokens, samples=500)
    assert seen == [20] * 3 + [160] * 3


def test_excluded_blocks_take_no_part(tiny_tokens: Tensor) -> None:
    model = tiny_llama(layers=5)
    subject = PrunableModel(model, r"layers\.[13]\.")
    states = outputs(model, tiny_tokens, [f"model.layers.{i}" for i in (0, 2, 4)])
    expected = solve_programme(sums(states), np.ones(3), 0.5, reach=0.2, step=0.05)
    found = allocated(subject, tiny_tokens, 0.5)
    assert list(found.grouped("block").values()) == pytest.approx(expected, abs=1e-3)


def test_zero_reach_is_uniform(tiny_subject: PrunableModel, tiny_tokens: Tensor) -> None:
    uniform = Budget(0.37).uniform(tiny_subject.layout)
    for per in ("block", "linear"):
        assert allocated(tiny_subject, tiny_tokens, 0.37, reach=0, per=per) == uniform


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"per": "row"}, "per must be one of block, linear"),
        ({"reach": 0.6}, "reach and granularity must lie in"),
        ({"granularity": -0.1}, "reach and granularity must lie in"),
        ({"samples": 1}, "samples must be at least 2"),
    ],
)
def test_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ALLOCATORS.create("als", **settings)


def test_errors(tiny_tokens: Tensor) -> None:
    model = tiny_llama()
    model.model.layers[1].mlp.down_proj.weight.fill_(torch.nan)
    with pytest.raises(NumericalError, match="activations are not finite"):
        allocated(PrunableModel(model), tiny_tokens)
