from __future__ import annotations

import pytest

from sparsity_search.interfaces.searcher import Searcher
from sparsity_search.registry import SEARCHERS
from sparsity_search.testing.searcher import SearcherContract


@pytest.fixture(params=SEARCHERS.names())
def searcher(request: pytest.FixtureRequest) -> Searcher:
    return SEARCHERS.create(request.param)


class TestSearchers(SearcherContract):
    pass
