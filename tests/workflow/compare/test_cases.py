from __future__ import annotations

import pytest

from sparsity_search.allocators.gauss_newton import GaussNewtonAllocator
from sparsity_search.allocators.knapsack import KnapsackAllocator
from sparsity_search.config.load import load_config
from sparsity_search.config.schema import PrunerSection
from sparsity_search.errors import ConfigError
from sparsity_search.registry import PRUNERS
from sparsity_search.workflow.compare.cases import Plan


def test_nested_allocators_keep_their_sections() -> None:
    section = "allocators.knapsack={levels: [0.5, 0.9]}"
    plan = Plan(
        config=load_config(None, {"model.name": "tiny"}, [section]),
        allocators=("gauss_newton[start=knapsack]",),
        pruners={"sparsegpt": PrunerSection(name="sparsegpt")},
        sparsities=(0.6,),
    )
    method = plan.list_cases()[-1].allocating
    assert isinstance(method, GaussNewtonAllocator)
    assert isinstance(method.start, KnapsackAllocator)
    assert method.start.levels == (0.5, 0.9)
    assert method.start.pruner == PRUNERS.create("sparsegpt")


@pytest.mark.parametrize("seeds", [0, -1, 10**9])
def test_a_number_of_seeds_has_bounds(seeds: int) -> None:
    with pytest.raises(ConfigError, match=f"--seeds must be 1 to 1000, not {seeds}"):
        Plan(
            config=load_config(None, {"model.name": "tiny"}),
            allocators=(),
            pruners={},
            sparsities=(0.6,),
            seeds=seeds,
        )
