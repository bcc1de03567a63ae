"""Methods that lose to a simpler one in the project's own tables say so."""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from pathlib import Path

import pytest

from sparsity_search.errors import ExperimentalWarning
from sparsity_search.registry import ALLOCATORS, PRUNERS, SENSITIVITIES, Registry, is_experimental

EXPERIMENTAL = {
    ALLOCATORS: {"block_taylor", "er", "flap", "global_magnitude", "lamp", "mrp"},
    PRUNERS: {"laco"},
    SENSITIVITIES: {"block_error", "layer_error"},
}
PLUGINS = [(registry, name) for registry in EXPERIMENTAL for name in registry.names()]
TABLE = Path(__file__).parents[2] / "docs" / "allocators.md"
#: Another draw of the text moves uniform by more than this.
NOISE = 0.03


@pytest.mark.parametrize(
    ("registry", "name"), PLUGINS, ids=[f"{registry.kind}-{name}" for registry, name in PLUGINS]
)
def test_use_is_warned_of_once(registry: Registry, name: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        registry.create(name)
    ours = [str(w.message) for w in caught if w.category is ExperimentalWarning]
    assert len(ours) == (name in EXPERIMENTAL[registry])
    assert all(name in message and re.search(r"\d", message) for message in ours)


def test_the_tier_is_that_of_the_published_table() -> None:
    ratios = defaultdict(list)
    measured = TABLE.read_text("utf-8").partition("## Measured")[2].partition("###")[0]
    for name, cells in re.findall(r"^\| `(\w+)[^|]*\|(.*)$", measured, re.MULTILINE):
        ratios[name] += [float(ratio) for ratio in re.findall(r"\((\d+\.\d+)\)", cells)]
    assert len(ratios) > 15
    for name in ratios.keys() - {"uniform"}:
        gains = min(ratios[name]) < 1 - NOISE
        assert is_experimental(ALLOCATORS.get(name)) != gains, name
