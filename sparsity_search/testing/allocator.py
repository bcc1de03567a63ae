"""The rules that every allocator keeps, see `sparsity_search.interfaces.allocator.Allocator`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparsity_search.errors import ConfigError, InfeasibleBudgetError
from sparsity_search.interfaces.allocator import Allocator
from sparsity_search.interfaces.units import ALL_UNITS
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.testing.evaluator import copy_weights, draw_random_tokens
from sparsity_search.testing.models import tiny_llama, tiny_mixtral

TARGETS = (0.1, 0.37, 0.5, 0.7, 0.95)
#: Patterns of units left alone: none, one unit of the first block, the whole second block.
EXCLUDED = (None, r"layers\.0(\.mlp(\.down_proj)?)?$", r"layers\.1(\.|$)")


class AllocatorContract:
    """Inherit in a test module that has a fixture ``allocator``."""

    @pytest.fixture
    def subject(self, allocator: Allocator) -> PrunableModel:
        """A tiny random model, with the units that the allocator is for."""
        return PrunableModel(tiny_llama(), units=allocator.units[0])

    @pytest.fixture
    def tokens(self) -> Tensor:
        """A few short sequences; the last batch is smaller."""
        return draw_random_tokens(9, 16)

    def test_is_a_value(self, allocator: Allocator) -> None:
        """Equal settings are equal, hashable, and print as one line."""
        assert allocator == type(allocator)()
        assert hash(allocator) == hash(type(allocator)())
        assert "\n" not in repr(allocator)

    @pytest.mark.parametrize("exclude", EXCLUDED)
    @pytest.mark.parametrize("target", TARGETS)
    def test_meets_the_budget(
        self, allocator: Allocator, tokens: Tensor, target: float, exclude: str | None
    ) -> None:
        """Profiles meet all targets as well as units allow, even if blocks differ in size."""
        subject = PrunableModel(tiny_llama(), exclude, allocator.units[0])
        budget = Budget(target)
        profile = allocator.allocate(subject, tokens, budget, Bounds.of(subject.layout))
        assert profile.layout == subject.layout
        assert_meets(profile, budget)

    @pytest.mark.parametrize(("low", "high"), [(0.45, 0.55), (0.0, 0.5005), (0.4995, 1.0)])
    def test_bounds(
        self,
        allocator: Allocator,
        subject: PrunableModel,
        tokens: Tensor,
        low: float,
        high: float,
    ) -> None:
        """Every unit stays within its bounds, and the budget is still met."""
        counts = subject.layout.counts
        bounds = Bounds(  # a whole structure may be wider than the bounds are apart
            lower=np.floor(counts * low).astype(np.int64),
            upper=np.ceil(counts * high).astype(np.int64),
        )
        profile = allocator.allocate(subject, tokens, Budget(0.5), bounds)
        assert_meets(profile, Budget(0.5))
        assert_within(profile, bounds)

    def test_units_that_stay_or_go(self, allocator: Allocator, tokens: Tensor) -> None:
        """The first unit is left alone and the last removed, whatever their scores."""
        subject = PrunableModel(tiny_llama(layers=4), units=allocator.units[0])
        counts, n_units = subject.layout.counts, len(subject.layout)
        bounds = Bounds(
            lower=np.where(np.arange(n_units) == n_units - 1, counts, 0),
            upper=np.where(np.arange(n_units) == 0, 0, counts),
        )
        profile = allocator.allocate(subject, tokens, Budget(0.5), bounds)
        assert_meets(profile, Budget(0.5))
        assert_within(profile, bounds)

    def test_constant_bounds(
        self, allocator: Allocator, subject: PrunableModel, tokens: Tensor
    ) -> None:
        """If the bounds allow one profile only, the allocator returns it."""
        wanted = np.linspace(0.2, 0.8, len(subject.layout))
        only = np.rint(subject.layout.counts * wanted).astype(np.int64)
        budget = Budget(int(only @ subject.layout.costs) / subject.layout.n_weights)
        profile = allocator.allocate(subject, tokens, budget, Bounds(lower=only, upper=only))
        assert profile.removed == tuple(only.tolist())

    @pytest.mark.parametrize(("low", "high"), [(0.0, 0.4), (0.6, 1.0)])
    def test_infeasible_bounds(
        self,
        allocator: Allocator,
        subject: PrunableModel,
        tokens: Tensor,
        low: float,
        high: float,
    ) -> None:
        """Bounds that no profile meets are an error before the model runs."""
        forbid_running(subject.model)
        with pytest.raises(InfeasibleBudgetError):
            allocator.allocate(subject, tokens, Budget(0.5), Bounds.of(subject.layout, low, high))

    @pytest.mark.parametrize("kind", ALL_UNITS)
    def test_kinds_of_units(self, allocator: Allocator, tokens: Tensor, kind: str) -> None:
        """The method serves the kinds that it declares; others are errors before the model runs.

        A kind that a plugin in the fields is not for is an error too.
        """
        model = tiny_mixtral() if kind == "experts" else tiny_llama(layers=2)
        subject = PrunableModel(model, units=kind)
        budget, bounds = Budget(0.5), Bounds.of(subject.layout)
        try:
            allocator.check_units(kind)
        except ConfigError:
            forbid_running(subject.model)
            with pytest.raises(ConfigError):
                allocator.allocate(subject, tokens, budget, bounds)
        else:
            assert kind in allocator.units
            assert_meets(allocator.allocate(subject, tokens, budget, bounds), budget)

    def test_existing_zeros(self, allocator: Allocator, tokens: Tensor) -> None:
        """Items that are zero in the dense model count as removed."""
        model = tiny_llama(layers=5)
        view = list(PrunableModel(model, units=allocator.units[0]).views.values())[2]
        view.write(torch.zeros_like(view.read()))
        subject = PrunableModel(model, units=allocator.units[0])
        assert subject.layout.zeros[2] == subject.layout.counts[2]
        profile = allocator.allocate(subject, tokens, Budget(0.3), Bounds.of(subject.layout))
        assert_meets(profile, Budget(0.3))
        assert (np.array(profile.removed) >= subject.layout.zeros).all()

    def test_model_is_unchanged(
        self, allocator: Allocator, subject: PrunableModel, tokens: Tensor
    ) -> None:
        """Weights, to the bit, and hooks are as before."""
        before = copy_weights(subject.model)
        allocator.allocate(subject, tokens, Budget(0.5), Bounds.of(subject.layout))
        assert_unchanged(subject.model, before)

    def test_deterministic(
        self, allocator: Allocator, subject: PrunableModel, tokens: Tensor
    ) -> None:
        """Equal arguments give equal profiles; no global random state is used."""
        bounds = Bounds.of(subject.layout)
        state = torch.get_rng_state()
        first = allocator.allocate(subject, tokens, Budget(0.5), bounds)
        assert torch.equal(torch.get_rng_state(), state)
        with torch.random.fork_rng(devices=[]):
            torch.rand(7)
            assert allocator.allocate(subject, tokens, Budget(0.5), bounds) == first


def forbid_running(model: nn.Module) -> None:
    """Make every forward pass of a model fail."""

    def fail(*_: object) -> None:
        raise AssertionError("the model ran")

    model.register_forward_pre_hook(fail)


def assert_meets(profile: SparsityProfile, budget: Budget) -> None:
    """Assert that a profile meets the budget to the weight, or to within one structure."""
    costs = profile.layout.costs
    off = abs(profile.n_removed - budget.n_removed(profile.layout))
    assert off == 0 if (costs == 1).all() else off < costs.max()


def assert_within(profile: SparsityProfile, bounds: Bounds) -> None:
    """Assert that every unit's count lies within its bounds."""
    removed = np.array(profile.removed)
    assert (bounds.lower <= removed).all()
    assert (removed <= bounds.upper).all()


def assert_unchanged(model: nn.Module, before: dict[str, Tensor]) -> None:
    """Assert that a model has the weights that `copy_weights` copied, and no hooks."""
    for name, weight in copy_weights(model).items():
        assert torch.equal(weight, before[name]), name
    hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks
