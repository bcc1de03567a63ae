"""What every measure must do, whatever it measures."""

from __future__ import annotations

import numpy as np
import pytest

from sparsity_search.errors import ConfigError
from sparsity_search.interfaces.measure import Measure
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.registry import UNITS
from sparsity_search.testing.allocator import assert_unchanged
from sparsity_search.testing.evaluator import weights_of
from sparsity_search.testing.models import tiny_llama, tiny_mixtral


class MeasureContract:
    """Inherit in a test module that has a fixture ``measure``."""

    @pytest.fixture(params=["width", "heads", "sublayers", "blocks"])
    def subject(self, request: pytest.FixtureRequest, measure: Measure) -> PrunableModel:
        """A tiny random model, with units of each kind that can be priced."""
        if request.param not in measure.units:
            pytest.skip(f"not for {request.param}")
        return PrunableModel(tiny_llama(), units=request.param)

    def test_is_a_value(self, measure: Measure) -> None:
        """Equal settings are equal, hashable, and print as one line."""
        assert measure == type(measure)()
        assert hash(measure) == hash(type(measure)())
        assert "\n" not in repr(measure)

    def test_prices_every_unit(self, measure: Measure, subject: PrunableModel) -> None:
        """Curves go from nothing to all of each unit, in finite numbers."""
        curves = measure.curves(subject)
        for unit, curve in zip(subject.layout, curves, strict=True):
            assert (curve.removed[0], curve.removed[-1]) == (0, unit.count)
            assert curve.saved[0] == 0
            assert np.isfinite(curve.saved).all()

    def test_leaves_the_model_alone(self, measure: Measure, subject: PrunableModel) -> None:
        """The model is as before."""
        before = weights_of(subject.model)
        measure.curves(subject)
        assert_unchanged(subject.model, before)

    @pytest.mark.parametrize("kind", UNITS.names())
    def test_refuses_other_units(self, measure: Measure, kind: str) -> None:
        """Units of a kind that it cannot price are refused, with what it can."""
        if kind in measure.units:
            measure.check(kind)
            return
        with pytest.raises(ConfigError, match=f"needs --units width.*, not {kind}"):
            measure.check(kind)
        model = tiny_mixtral() if kind == "experts" else tiny_llama()
        with pytest.raises(ConfigError, match=f"not {kind}"):
            measure.curves(PrunableModel(model, units=kind))
