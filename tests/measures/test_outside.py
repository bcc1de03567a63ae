"""Measures of others pass the contract, whatever kinds of units they price."""

from __future__ import annotations

import pytest

from sparsity_search.interfaces.measure import Measure
from sparsity_search.testing.measure import MeasureContract, priced_model
from tests.helpers.measures import PackedMeasure, TrafficMeasure


@pytest.mark.parametrize("measure", [TrafficMeasure, PackedMeasure], indirect=True)
class TestContract(MeasureContract):
    @pytest.fixture
    def measure(self, request: pytest.FixtureRequest) -> Measure:
        found: Measure = request.param()
        return found


def test_prices_of_weights_and_patterns() -> None:
    subject = priced_model("weights")
    prices = PackedMeasure().price(subject, "packed", ("2:4",))
    counts = subject.layout.counts
    # of 16 bits a weight: a mask costs one, and 2:4 with two bits a place saves 7
    assert prices.costs.tolist() == counts.tolist()
    assert prices.of_pattern("2:4") == pytest.approx(counts * 7 / 15, abs=0.5)
    assert prices.at(range(len(counts)), counts // 16).sum() == 0
