from __future__ import annotations

import pytest

from sparsity_search.interfaces.measure import Measure
from sparsity_search.registry import MEASURES
from sparsity_search.testing.measure import MeasureContract


@pytest.mark.parametrize("measure", MEASURES.names(), indirect=True)
class TestContract(MeasureContract):
    @pytest.fixture
    def measure(self, request: pytest.FixtureRequest) -> Measure:
        found: Measure = MEASURES.create(request.param)
        return found
