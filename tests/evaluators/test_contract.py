from __future__ import annotations

import pytest

from sparsity_search.evaluators.base import Evaluator
from sparsity_search.registry import EVALUATORS
from sparsity_search.testing.evaluator import EvaluatorContract


@pytest.fixture(params=EVALUATORS.names())
def evaluator(request: pytest.FixtureRequest) -> Evaluator:
    return EVALUATORS.create(request.param)


class TestEvaluators(EvaluatorContract):
    pass
