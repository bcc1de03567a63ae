from __future__ import annotations

import pytest

from sparsity_search.pruners.base import Pruner
from sparsity_search.registry import PRUNERS
from sparsity_search.testing.pruner import PrunerContract


@pytest.fixture(params=PRUNERS.names())
def pruner(request: pytest.FixtureRequest) -> Pruner:
    return PRUNERS.create(request.param)


class TestPruners(PrunerContract):
    pass
