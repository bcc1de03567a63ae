from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sparsity_search.interfaces.evaluator import Evaluator
from sparsity_search.registry import EVALUATORS
from sparsity_search.testing.evaluator import EvaluatorContract, OwnDataContract, TextContract
from sparsity_search.testing.models import tiny_llama
from tests.helpers.questions import easy, write


@cache
def rows() -> list[dict[str, Any]]:
    return easy(30, tiny_llama())


#: Settings of plugins that cannot do with their defaults, given a folder for files.
SETTINGS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "tasks": lambda folder: {"files": (write(folder / "questions.jsonl", rows()),)},
}
WITH_DATA = [n for n in EVALUATORS.names() if EVALUATORS.get(n).own_data != Evaluator.own_data]


def create(request: pytest.FixtureRequest, folder: Path) -> Any:
    settings = SETTINGS.get(request.param, lambda _: {})(folder)
    return EVALUATORS.create(request.param, **settings)


class TestEvaluators(EvaluatorContract):
    @pytest.fixture(params=EVALUATORS.names())
    def evaluator(self, request: pytest.FixtureRequest, tmp_path: Path) -> Evaluator:
        return create(request, tmp_path)


class TestOfText(TextContract):
    @pytest.fixture(params=[name for name in EVALUATORS.names() if name not in WITH_DATA])
    def evaluator(self, request: pytest.FixtureRequest, tmp_path: Path) -> Evaluator:
        return create(request, tmp_path)


class TestOfOwnData(OwnDataContract):
    @pytest.fixture(params=WITH_DATA)
    def evaluator(self, request: pytest.FixtureRequest, tmp_path: Path) -> Evaluator:
        return create(request, tmp_path)
