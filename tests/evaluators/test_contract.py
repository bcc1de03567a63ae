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


def tasks(folder: Path, **settings: Any) -> Evaluator:
    file = write(folder / "questions.jsonl", rows())
    return EVALUATORS.create("tasks", files=(file,), **settings)


#: Plugins that need more than their defaults, given a folder for files; one is discrete.
CREATE: dict[str, Callable[[Path], Evaluator]] = {
    "tasks": tasks,
    "tasks, error": lambda folder: tasks(folder, measure="error", examples=5),
}
WITH_DATA = list(CREATE)
OF_TEXT = [name for name in EVALUATORS.names() if name not in CREATE]


def create(request: pytest.FixtureRequest, folder: Path) -> Any:
    name = request.param
    return CREATE[name](folder) if name in CREATE else EVALUATORS.create(name)


class TestEvaluators(EvaluatorContract):
    @pytest.fixture(params=[*OF_TEXT, *WITH_DATA])
    def evaluator(self, request: pytest.FixtureRequest, tmp_path: Path) -> Evaluator:
        return create(request, tmp_path)


class TestOfText(TextContract):
    @pytest.fixture(params=OF_TEXT)
    def evaluator(self, request: pytest.FixtureRequest, tmp_path: Path) -> Evaluator:
        return create(request, tmp_path)


class TestOfOwnData(OwnDataContract):
    @pytest.fixture(params=WITH_DATA)
    def evaluator(self, request: pytest.FixtureRequest, tmp_path: Path) -> Evaluator:
        return create(request, tmp_path)
