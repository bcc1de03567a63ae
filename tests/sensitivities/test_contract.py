from __future__ import annotations

import pytest

from sparsity_search.interfaces.sensitivity import Sensitivity
from sparsity_search.registry import SENSITIVITIES
from sparsity_search.testing.sensitivity import SensitivityContract


@pytest.mark.parametrize("sensitivity", SENSITIVITIES.names(), indirect=True)
class TestContract(SensitivityContract):
    @pytest.fixture
    def sensitivity(self, request: pytest.FixtureRequest) -> Sensitivity:
        found: Sensitivity = SENSITIVITIES.create(request.param)
        return found
