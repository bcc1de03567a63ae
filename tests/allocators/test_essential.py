from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

import sparsity_search.allocators.essential as module
from sparsity_search.allocators.essential import EssentialAllocator, find_knee
from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.evidence.statistics import Statistic
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.walk import walk
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.pruners.magnitude import MagnitudePruner
from sparsity_search.pruners.wanda import WandaPruner
from sparsity_search.registry import ALLOCATORS, PRUNERS
from sparsity_search.testing.models import tiny_llama, tiny_mixtral

LEVELS = (0.2, 0.5, 0.7)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(128, (9, 16), generator=torch.Generator().manual_seed(5))


def allocated(
    subject: PrunableModel, tokens: Tensor, target: float = 0.7, **settings: Any
) -> SparsityProfile:
    bounds = Bounds.of(subject.layout)
    allocator = ALLOCATORS.create("essential", **settings)
    return allocator.allocate(subject, tokens, Budget(target), bounds)


def curves(
    subject: PrunableModel, tokens: Tensor, allocator: EssentialAllocator
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    names = [unit.name for unit in subject.layout]
    return dict(zip(names, allocator.curves(subject, tokens), strict=True))


def linear_io(subject: PrunableModel, tokens: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return what a unit's linear reads and gives in the dense model, float64."""
    seen: list[Tensor] = []

    def take(_: object, args: tuple[Tensor], output: Tensor) -> None:
        seen.extend([args[0].flatten(0, 1).double(), output.flatten(0, 1).double()])

    handle = subject.views[name].module.register_forward_hook(take)
    subject.model(input_ids=tokens)
    handle.remove()
    return seen[0], seen[1]


def wanda_error(weight: Tensor, inputs: Tensor, count: int) -> float:
    """Return the relative output error of Wanda's mask, from the outputs themselves."""
    score = weight.abs() * inputs.square().mean(0).sqrt()
    pruned = weight.clone()
    each, rest = divmod(count, len(weight))
    assert rest == 0
    for row, order in zip(pruned, score.argsort(dim=1), strict=True):
        row[order[:each]] = 0
    change = inputs @ (pruned - weight).T
    return float(change.square().sum() / (inputs @ weight.T).square().sum())


def test_curve_is_the_relative_output_error(tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama())
    found = curves(subject, tokens, EssentialAllocator(levels=(0.25, 0.5, 0.75)))
    for name in ("model.layers.1.self_attn.q_proj", "model.layers.2.mlp.down_proj"):
        inputs, _ = linear_io(subject, tokens, name)
        weight = subject.views[name].read().double()
        expected = [
            wanda_error(weight, inputs, int(s * weight.numel())) for s in (0.25, 0.5, 0.75)
        ]
        sparsities, errors = found[name]
        assert sparsities.tolist() == [0, 0.25, 0.5, 0.75, 1]
        assert errors.tolist() == pytest.approx([0, *expected, 1], rel=1e-3)


@pytest.mark.parametrize(
    ("units", "name"),
    [
        ("weights", "sparsegpt"),
        ("weights", "gblm"),
        ("width", "wanda_sp"),
        ("width", "flap"),
        ("heads", "flap"),
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_curve_is_that_of_the_pruned_model(
    units: str, name: str, bias: bool, tokens: Tensor
) -> None:
    # a unit is written back pruned: what its consumer then makes of the dense inputs is compared
    config = {"num_attention_heads": 8, "num_key_value_heads": 4, "mlp_bias": bias}
    model = tiny_llama(layers=2, attention_bias=bias, **config)
    if bias:
        for parameter in [p for n, p in model.named_parameters() if n.endswith("bias")]:
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    subject = PrunableModel(model, units=units)
    allocator = EssentialAllocator(pruner=PRUNERS.create(name), levels=LEVELS)
    unit = next(u for u in subject.layout if u.role in ("feed_forward", "down"))
    sparsities, errors = curves(subject, tokens, allocator)[unit.name]
    inputs, outputs = linear_io(subject, tokens, unit.name)
    linear = subject.views[unit.name].module
    visit = next(
        walk(subject, tokens, Statistic.HESSIAN, rewritten=False, gradient=name == "gblm")
    )
    view = subject.views[unit.name]
    counts = np.rint(sparsities * unit.count).astype(int).tolist()[1:-1]
    pruner = PRUNERS.create(name)
    dense = view.read().clone()
    signal = (inputs @ linear.weight.double().T).square().sum()
    variants = pruner.prune(dense, visit.evidence[unit.name], counts, seed=0)
    for count, error in zip(counts, errors[1:-1], strict=True):
        view.write(variants.at(dense, count))
        made = inputs @ linear.weight.double().T
        made = made if linear.bias is None else made + linear.bias.double()
        expected = float((made - outputs).square().sum() / signal)
        assert error == pytest.approx(expected, rel=2e-3)
        view.write(dense)
    assert errors[0] == 0
    assert errors[-1] == 1


def test_knee_by_hand() -> None:
    sparsities = np.array([0, 0.3, 0.6, 1])
    # 0.2 and 0.3 below the chord; the parabola through these and the end has its top at 0.558
    errors = np.array([0, 0.1, 0.3, 1])
    top = np.polyfit(sparsities[1:], (sparsities - errors)[1:], 2)
    assert find_knee(sparsities, errors) == pytest.approx(-top[1] / (2 * top[0]))
    assert 0.45 < find_knee(sparsities, errors) < 0.8


@given(st.floats(0.05, 0.95), st.integers(3, 12))
def test_knee_of_a_parabola_is_exact(top: float, n: int) -> None:
    # halfway between an end and its neighbour both are equally good: rounding would decide
    assume(min(abs(top - 0.5 / n), abs(1 - top - 0.5 / n)) > 1e-3)
    sparsities = np.linspace(0, 1, n + 1)
    below = 0.4 * sparsities * (2 * top - sparsities)
    best = int(below.argmax())
    expected = top if 0 < best < n else sparsities[best]
    assert find_knee(sparsities, sparsities - below) == pytest.approx(expected, abs=1e-9)


@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=9),
    st.lists(st.floats(0.01, 1), min_size=2, max_size=9),
)
def test_knee_lies_beside_the_best_level(errors: list[float], gaps: list[float]) -> None:
    n = min(len(errors), len(gaps))
    sparsities = np.concatenate([[0], np.cumsum(gaps[:n])])
    sparsities /= sparsities[-1]
    curve = np.sort(np.array([0, *errors[: n - 1], 1]))
    found = find_knee(sparsities, curve)
    best = int(np.round(sparsities - curve, 6).argmax())
    low, high = max(best - 1, 0), min(best + 1, n)
    assert sparsities[low] - 1e-9 <= found <= sparsities[high] + 1e-9


def test_knee_of_straight_and_convex_down_curves() -> None:
    levels = np.linspace(0, 1, 11)
    assert find_knee(levels, levels) == 0
    noise = 1e-8 * np.sin(np.arange(11))
    assert find_knee(levels, levels + noise) == 0  # rounding is no knee
    assert find_knee(levels, np.sqrt(levels)) == 0
    assert find_knee(levels, np.zeros(11)) == 1
    almost = np.array([0, 0.0999996, 0.1999994, 0.6999986, 1])  # 0.2 but for rounding
    assert find_knee(np.array([0, 0.3, 0.4, 0.9, 1]), almost) == 0.9  # not behind all of them
    flat = np.array([0, 0, 0.1, 0.2, 0.9, 1])  # as far below at 0.4 as at 0.6: halfway
    assert 0.3 < find_knee(np.linspace(0, 1, 6), flat) < 0.6


def test_profile_is_that_of_the_knees(tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama())
    knees = np.array(
        [find_knee(*c) for c in curves(subject, tokens, EssentialAllocator()).values()]
    )
    assert np.ptp(knees) > 0.05
    for target in (0.37, 0.7):
        found = allocated(subject, tokens, target)
        expected = Budget(target).project(subject.layout, knees, Bounds.of(subject.layout))
        assert found == expected


def test_what_holds_little_is_pruned_more(tokens: Tensor) -> None:
    model = tiny_llama()
    name = "model.layers.1.mlp.up_proj"
    weight = model.get_submodule(name).weight
    weight[:, 6:] *= 0.01  # nearly all of its output comes from 6 inputs of 32
    subject = PrunableModel(model)
    found = allocated(subject, tokens, 0.5)
    assert int(np.argmax(found.sparsities)) == subject.layout.position(name)


def test_pruner_matters(tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama())
    wanda = allocated(subject, tokens, 0.5)
    assert allocated(subject, tokens, 0.5, pruner=WandaPruner()) == wanda
    assert allocated(subject, tokens, 0.5, pruner={"name": "wanda", "pattern": "row"}) == wanda
    assert allocated(subject, tokens, 0.5, pruner="magnitude") != wanda


def test_levels_become_whole_numbers(tokens: Tensor) -> None:
    model = tiny_llama(layers=1, num_attention_heads=8, num_key_value_heads=4)
    subject = PrunableModel(model, units="width")
    pruner, levels = PRUNERS.create("wanda_sp"), (0.1, 0.2, 0.3, 0.6, 0.9)
    allocator = EssentialAllocator(pruner=pruner, levels=levels)
    (attention, _), (feed_forward, _) = curves(subject, tokens, allocator).values()
    assert attention.tolist() == [0, 0.25, 0.5, 1]  # 4 groups: 0, 1, 1, 2 and 4
    assert (feed_forward * 64).tolist() == [0, 6, 13, 19, 38, 58, 64]


def test_groups_lose_whole_weights(tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama(layers=1))
    pruner = WandaPruner(pattern="*:4")
    for sparsities, errors in curves(subject, tokens, EssentialAllocator(pruner=pruner)).values():
        assert sparsities.tolist() == [0, 0.25, 0.5, 0.75, 1]
        assert (np.diff(errors) > 0).all()


def test_one_structure_has_no_curve(tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama(num_key_value_heads=1), units="width")
    found = curves(subject, tokens, EssentialAllocator(pruner=PRUNERS.create("wanda_sp")))
    sparsities, errors = found["model.layers.0.self_attn"]
    assert sparsities.tolist() == errors.tolist() == [0, 1]
    allocated(subject, tokens, 0.5, pruner="wanda_sp")


def test_experts(tokens: Tensor) -> None:
    subject = PrunableModel(tiny_mixtral())
    found = allocated(subject, tokens, 0.6, levels=(0.5, 0.7))
    assert found.n_removed == Budget(0.6).n_removed(subject.layout)


def test_a_unit_of_zeros_may_go_entirely(tokens: Tensor) -> None:
    model = tiny_llama()
    name = "model.layers.1.mlp.gate_proj"
    model.get_submodule(name).weight.zero_()  # then nothing reaches down_proj either
    subject = PrunableModel(model)
    found = curves(subject, tokens, EssentialAllocator())
    for part in ("gate_proj", "down_proj"):
        sparsities, errors = found[f"model.layers.1.mlp.{part}"]
        assert not errors.any()
        assert find_knee(sparsities, errors) == 1


def test_equal_curves_give_the_uniform_profile(
    monkeypatch: pytest.MonkeyPatch, tokens: Tensor
) -> None:
    subject = PrunableModel(tiny_llama(layers=1))
    monkeypatch.setattr(module, "find_knee", lambda *_: 0.61)
    assert allocated(subject, tokens, 0.37) == Budget(0.37).uniform(subject.layout)


@dataclass(frozen=True, kw_only=True)
class Counting(MagnitudePruner):
    """Notes the counts that it is asked for."""

    def prune(self, weight: Tensor, evidence: Any, counts: Any, *, seed: int) -> Any:
        asked.append((tuple(counts), seed))
        return super().prune(weight, evidence, counts, seed=seed)


asked: list[tuple[tuple[int, ...], int]] = []


def test_each_unit_is_pruned_once(tokens: Tensor) -> None:
    asked.clear()
    subject = PrunableModel(tiny_llama(layers=1))
    allocated(subject, tokens, 0.5, pruner=Counting(), levels=LEVELS)
    assert [c for c, _ in asked] == [
        tuple(round(level * unit.count) for level in LEVELS) for unit in subject.layout
    ]
    assert len({seed for _, seed in asked}) == len(subject.layout)


def test_settings() -> None:
    for levels in ((), (0.0, 0.5), (0.5, 1.0), (0.5, 0.5), (0.5, 0.4)):
        with pytest.raises(ConfigError, match="levels must rise strictly within 0 … 1"):
            ALLOCATORS.create("essential", levels=levels)
    with pytest.raises(ConfigError, match=r"levels\.0: must be a finite number"):
        ALLOCATORS.create("essential", levels=(float("nan"),))
    assert ALLOCATORS.create("essential", levels=[0.1, 0.5]) == EssentialAllocator(
        levels=(0.1, 0.5)
    )
    made = ALLOCATORS.create("essential", pruner={"name": "wanda", "pattern": "layer"})
    assert made.pruner == WandaPruner(pattern="layer")
    assert hash(made) != hash(EssentialAllocator())


@pytest.mark.parametrize(
    ("units", "pruner"), [("width", "wanda"), ("weights", "flap"), ("blocks", "drop")]
)
def test_needs_a_pruner_for_its_units(units: str, pruner: str, tokens: Tensor) -> None:
    subject = PrunableModel(tiny_llama(), units=units)
    with pytest.raises(ConfigError, match=units):
        allocated(subject, tokens, pruner=pruner)


def test_errors(tokens: Tensor) -> None:
    model = tiny_llama()
    model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(NumericalError):
        allocated(PrunableModel(model), tokens)
