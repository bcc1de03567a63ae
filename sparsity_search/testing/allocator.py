"""What every allocator must do, whatever its method."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparsity_search.allocators.base import Allocator
from sparsity_search.budget import Bounds, Budget
from sparsity_search.errors import InfeasibleBudgetError
from sparsity_search.models.prunable import PrunableModel
from sparsity_search.profile import SparsityProfile
from sparsity_search.testing.evaluator import random_tokens, weights_of
from sparsity_search.testing.models import tiny_llama

TARGETS = (0.1, 0.37, 0.5, 0.7, 0.95)
#: Patterns of units left alone: none, one matrix of one block, a whole block.
EXCLUDED = (None, r"layers\.0\.mlp\.down", r"layers\.1\.")


class AllocatorContract:
    """Inherit in a test module that has a fixture ``allocator``."""

    @pytest.fixture
    def subject(self) -> PrunableModel:
        """A tiny random model."""
        return PrunableModel(tiny_llama())

    @pytest.fixture
    def tokens(self) -> Tensor:
        """A few short sequences; the last batch is smaller."""
        return random_tokens(9, 16)

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
        """Exactly so, at all targets, also where blocks differ in size."""
        subject = PrunableModel(tiny_llama(), exclude)
        budget = Budget(target)
        profile = allocator.allocate(subject, tokens, budget, Bounds.of(subject.layout))
        assert profile.layout == subject.layout
        assert profile.n_removed == budget.n_removed(subject.layout)

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
        bounds = Bounds.of(subject.layout, low, high)
        profile = allocator.allocate(subject, tokens, Budget(0.5), bounds)
        assert profile.n_removed == Budget(0.5).n_removed(subject.layout)
        assert_within(profile, bounds)

    def test_constant_bounds(
        self, allocator: Allocator, subject: PrunableModel, tokens: Tensor
    ) -> None:
        """Where bounds leave one profile, that is the one."""
        wanted = np.linspace(0.2, 0.8, len(subject.layout))
        only = Bounds.of(subject.layout, 0.0, wanted).upper
        budget = Budget(int(only.sum()) / subject.layout.n_weights)
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

        def runs(*_: object) -> None:
            raise AssertionError("the model ran")

        subject.model.register_forward_pre_hook(runs)
        with pytest.raises(InfeasibleBudgetError, match="out of reach"):
            allocator.allocate(subject, tokens, Budget(0.5), Bounds.of(subject.layout, low, high))

    def test_existing_zeros(self, allocator: Allocator, tokens: Tensor) -> None:
        """Weights that are zero in the dense model count as removed."""
        model = tiny_llama()
        model.get_submodule("model.layers.1.mlp.up_proj").weight.zero_()
        subject = PrunableModel(model)
        profile = allocator.allocate(subject, tokens, Budget(0.3), Bounds.of(subject.layout))
        assert profile.n_removed == Budget(0.3).n_removed(subject.layout)
        assert (np.array(profile.removed) >= subject.layout.zeros).all()

    def test_model_is_unchanged(
        self, allocator: Allocator, subject: PrunableModel, tokens: Tensor
    ) -> None:
        """Weights, to the bit, and hooks are as before."""
        before = weights_of(subject.model)
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


def assert_within(profile: SparsityProfile, bounds: Bounds) -> None:
    """Assert that every unit's count lies within its bounds."""
    removed = np.array(profile.removed)
    assert (bounds.lower <= removed).all()
    assert (removed <= bounds.upper).all()


def assert_unchanged(model: nn.Module, before: dict[str, Tensor]) -> None:
    """Assert that a model has the weights that `weights_of` copied, and no hooks."""
    for name, weight in weights_of(model).items():
        assert torch.equal(weight, before[name]), name
    hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks
