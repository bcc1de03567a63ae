from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch import Tensor

for _suite in ("allocator", "evaluator", "pruner", "searcher", "structured"):
    pytest.register_assert_rewrite(f"sparsity_search.testing.{_suite}")

from sparsity_search.models.anatomy.prunable import PrunableModel  # noqa: E402
from sparsity_search.testing.evaluator import draw_random_tokens  # noqa: E402
from sparsity_search.testing.models import tiny_llama  # noqa: E402

torch.set_num_threads(1)
settings.register_profile("default", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("default")


#: The fast tests run each `_STRIDE`-th case of a test that has more than `_MANY` cases.
_MANY, _STRIDE = 6, 6


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark most cases of tests with many parameters as slow: `make test-all` runs them all."""
    cases = defaultdict(list)
    for item in items:
        cases[item.nodeid.partition("[")[0]].append(item)
    for several in cases.values():
        if len(several) > _MANY:
            for i, item in enumerate(several):
                if i % _STRIDE:
                    item.add_marker("slow")


@pytest.fixture(scope="session")
def _cache_of_real_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _private_cache(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    _cache_of_real_models: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Give each test an empty cache; those of real models share one, as conversion is slow."""
    real = request.node.get_closest_marker("real_model")
    folder = _cache_of_real_models if real else tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SPARSITY_SEARCH_CACHE", str(folder))


@pytest.fixture
def tiny_subject() -> PrunableModel:
    return PrunableModel(tiny_llama())


@pytest.fixture
def tiny_tokens() -> Tensor:
    """Ten sequences: one full batch of the block runner, and a smaller one."""
    return draw_random_tokens(10, 16)
