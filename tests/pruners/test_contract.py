from __future__ import annotations

import pytest

from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.registry import PRUNERS
from sparsity_search.testing.pruner import PrunerContract
from sparsity_search.testing.structured import StructuredPrunerContract
from tests.helpers.names import OF_STRUCTURES, OF_WEIGHTS


class TestPruners(PrunerContract):
    @pytest.fixture(params=OF_WEIGHTS)
    def pruner(self, request: pytest.FixtureRequest) -> Pruner:
        return PRUNERS.create(request.param)


class TestStructuredPruners(StructuredPrunerContract):
    @pytest.fixture(params=OF_STRUCTURES)
    def pruner(self, request: pytest.FixtureRequest) -> Pruner:
        return PRUNERS.create(request.param)
