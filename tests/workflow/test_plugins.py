from __future__ import annotations

from sparsity_search.config import RunConfig, load_config
from sparsity_search.registry import ALLOCATORS, PRUNERS
from sparsity_search.workflow.plugins import allocator


def config(*overrides: str) -> RunConfig:
    return load_config(None, {"model.name": "tiny"}, overrides)


def test_an_allocator_has_pruner_and_seed_of_the_run() -> None:
    found = allocator(config("pruner.name=sparsegpt", "pruner.damping=0.1"), "essential")
    assert found.pruner == PRUNERS.create("sparsegpt", damping=0.1)
    found = allocator(config("pruner.name=ria+sparsegpt"), "essential")
    assert found.pruner == PRUNERS.create("sparsegpt", mask="ria")
    assert allocator(config("study.seed=4"), "knapsack").seed == 4


def test_unless_they_are_set() -> None:
    overrides = ("pruner.name=ria", "allocators.knapsack={pruner: magnitude, seed: 2}")
    found = allocator(config(*overrides, "study.seed=4"), "knapsack")
    assert found.pruner == PRUNERS.create("magnitude")
    assert found.seed == 2
    assert allocator(config("pruner.name=ria"), "owl") == ALLOCATORS.create("owl")
