from __future__ import annotations

import pytest

from sparsity_search.interfaces.allocator import Allocator
from sparsity_search.registry import ALLOCATORS
from sparsity_search.testing.allocator import AllocatorContract


@pytest.fixture(params=ALLOCATORS.names())
def allocator(request: pytest.FixtureRequest) -> Allocator:
    return ALLOCATORS.create(request.param)


class TestAllocators(AllocatorContract):
    pass
