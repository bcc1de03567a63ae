"""The rules that every measure keeps, see `interfaces.measure.Measure`."""

from __future__ import annotations

import numpy as np
import pytest

from sparsity_search.errors import ConfigError
from sparsity_search.interfaces.measure import Measure
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.registry import UNITS
from sparsity_search.testing.allocator import assert_unchanged
from sparsity_search.testing.evaluator import copy_weights
from sparsity_search.testing.models import tiny_llama, tiny_mixtral

PATTERNS = ("2:4", "4:8")


def priced_model(kind: str) -> PrunableModel:
    """Return a tiny random model with units of a kind."""
    return PrunableModel(tiny_mixtral() if kind == "experts" else tiny_llama(), units=kind)


class MeasureContract:
    """Inherit in a test module that has a fixture ``measure``.

    A measure may price any kinds of units, and N:M patterns or not. The kinds that it declares
    must have prices, and all others must be refused.
    """

    @pytest.fixture(params=UNITS.names())
    def subject(self, request: pytest.FixtureRequest, measure: Measure) -> PrunableModel:
        """A tiny random model, with units of each kind that can be priced."""
        if request.param not in measure.units:
            pytest.skip(f"not for {request.param}")
        return priced_model(request.param)

    def test_is_a_value(self, measure: Measure) -> None:
        """Equal settings are equal, hashable, and print as one line."""
        assert measure == type(measure)()
        assert hash(measure) == hash(type(measure)())
        assert "\n" not in repr(measure)

    def test_prices_some_known_kind(self, measure: Measure) -> None:
        """The measure prices known kinds of units; patterns need single weights."""
        assert measure.units
        assert set(measure.units) <= set(UNITS.names())
        assert not measure.prices_patterns or "weights" in measure.units

    def test_prices_every_unit(self, measure: Measure, subject: PrunableModel) -> None:
        """Curves go from nothing to all of each unit, in finite numbers."""
        curves = measure.curves(subject)
        assert len(curves) == len(subject.layout)
        for unit, curve in zip(subject.layout, curves, strict=True):
            assert len(curve.removed) == len(curve.saved)
            assert (curve.removed[0], curve.removed[-1]) == (0, unit.count)
            assert (np.diff(curve.removed) > 0).all()
            assert curve.saved[0] == 0
            assert np.isfinite(curve.saved).all()

    def test_prices_every_pattern(self, measure: Measure) -> None:
        """Each unit of single weights has a finite saving, or patterns are refused."""
        if not measure.prices_patterns:
            with pytest.raises(ConfigError):
                measure.check(measure.units[0], PATTERNS)
            return
        measure.check("weights", PATTERNS)
        subject = priced_model("weights")
        for pattern in PATTERNS:
            savings = measure.pattern_savings(subject, pattern)
            assert len(savings) == len(subject.layout)
            assert np.isfinite(savings).all()
            assert (np.array(savings) >= 0).all()

    def test_leaves_the_model_alone(self, measure: Measure, subject: PrunableModel) -> None:
        """The model is as before."""
        before = copy_weights(subject.model)
        measure.curves(subject)
        if measure.prices_patterns and subject.units == "weights":
            measure.pattern_savings(subject, PATTERNS[0])
        assert_unchanged(subject.model, before)

    @pytest.mark.parametrize("kind", UNITS.names())
    def test_refuses_other_units(self, measure: Measure, kind: str) -> None:
        """Units of a kind that it cannot price are refused, before and after the model is read."""
        if kind in measure.units:
            measure.check(kind)
            return
        with pytest.raises(ConfigError):
            measure.check(kind)
        with pytest.raises(ConfigError):
            measure.price(priced_model(kind), "measure")
