"""The rules that every sensitivity keeps, see `interfaces.sensitivity.Sensitivity`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsity_search.errors import ConfigError
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.interfaces.sensitivity import Sensitivity
from sparsity_search.interfaces.units import ALL_UNITS
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.scores import Scores, build_count_tables
from sparsity_search.registry import PRUNERS
from sparsity_search.testing.allocator import assert_unchanged
from sparsity_search.testing.evaluator import copy_weights, draw_random_tokens
from sparsity_search.testing.models import tiny_llama

LEVELS = (0.25, 0.5, 1.0)
#: A pruner for each kind of units.
KINDS = {"weights": "wanda", "width": "wanda_sp", "sublayers": "drop", "blocks": "drop"}


class SensitivityContract:
    """Inherit in a test module that has a fixture ``sensitivity``."""

    @pytest.fixture(params=KINDS)
    def subject(self, request: pytest.FixtureRequest, sensitivity: Sensitivity) -> PrunableModel:
        """A tiny random model, with units of each kind that can be measured."""
        if request.param not in sensitivity.units:
            pytest.skip(f"not for {request.param}")
        return PrunableModel(tiny_llama(), units=request.param)

    @pytest.fixture
    def pruner(self, subject: PrunableModel) -> Pruner:
        """A pruner for these units."""
        pruner: Pruner = PRUNERS.create(KINDS[subject.units])
        return pruner

    @pytest.fixture
    def tokens(self) -> Tensor:
        """A few short sequences."""
        return draw_random_tokens(3, 16)

    def measured(
        self, sensitivity: Sensitivity, subject: PrunableModel, tokens: Tensor, pruner: Pruner
    ) -> Scores:
        """Return the scores at `LEVELS`."""
        return sensitivity.measure(
            subject, tokens, pruner, build_count_tables(subject.layout, LEVELS)
        )

    def test_is_a_value(self, sensitivity: Sensitivity) -> None:
        """Equal settings are equal, hashable, and print as one line."""
        assert sensitivity == type(sensitivity)()
        assert hash(sensitivity) == hash(type(sensitivity)())
        assert "\n" not in repr(sensitivity)

    def test_losses_rise(
        self, sensitivity: Sensitivity, subject: PrunableModel, tokens: Tensor, pruner: Pruner
    ) -> None:
        """A loss for each count; it never falls, and a unit removed whole loses something."""
        scores = self.measured(sensitivity, subject, tokens, pruner)
        assert [tuple(c) for c in scores.counts] == list(
            build_count_tables(subject.layout, LEVELS)
        )
        for losses in scores.losses:
            assert (np.diff(losses) >= 0).all()
            assert losses[-1] > 0

    def test_other_units(self, sensitivity: Sensitivity) -> None:
        """Units of a kind that the method is not for are refused."""
        for kind in set(ALL_UNITS) - set(sensitivity.units):
            with pytest.raises(ConfigError):
                sensitivity.check_units(kind)

    def test_model_is_unchanged(
        self, sensitivity: Sensitivity, subject: PrunableModel, tokens: Tensor, pruner: Pruner
    ) -> None:
        """Weights, to the bit, hooks and gradients are as before."""
        before = copy_weights(subject.model)
        self.measured(sensitivity, subject, tokens, pruner)
        assert_unchanged(subject.model, before)
        assert all(p.grad is None for p in subject.model.parameters())

    def test_deterministic(
        self, sensitivity: Sensitivity, subject: PrunableModel, tokens: Tensor, pruner: Pruner
    ) -> None:
        """Equal arguments give equal losses; no global random state is used."""
        state = torch.get_rng_state()
        first = self.measured(sensitivity, subject, tokens, pruner)
        assert torch.equal(torch.get_rng_state(), state)
        with torch.random.fork_rng(devices=[]):
            torch.rand(7)
            second = self.measured(sensitivity, subject, tokens, pruner)
        for one, other in zip(first.losses, second.losses, strict=True):
            np.testing.assert_array_equal(one, other)
