"""Every recovery keeps the rules of its interface."""

from __future__ import annotations

from typing import Any

import pytest

from sparsity_search.interfaces.recovery import Recovery
from sparsity_search.registry import RECOVERIES
from sparsity_search.testing.recovery import RecoveryContract

#: Settings that are quick on a tiny model.
QUICK: dict[str, dict[str, Any]] = {
    "block": {"steps": 16, "rate": 0.01},
    "perp": {"steps": 16, "rate": 0.01, "rank": 4},
    "distil": {"steps": 16, "rate": 5e-3},
    "scales": {"steps": 8, "rate": 5e-3},
}
VARIANTS = {
    "block, low rank": ("block", {**QUICK["block"], "rank": 4, "rate": 0.02}),
    "block, pruned inputs": ("block", {**QUICK["block"], "inputs": "pruned"}),
    "perp, next token": (
        "perp",
        {**QUICK["perp"], "target": "next_token", "steps": 60, "rate": 1e-3},
    ),
    **{name: (name, settings) for name, settings in QUICK.items()},
}


def test_every_recovery_is_here() -> None:
    assert set(QUICK) == set(RECOVERIES.names())


class TestContract(RecoveryContract):
    @pytest.fixture(params=VARIANTS)
    def recovery(self, request: pytest.FixtureRequest) -> Recovery:
        name, settings = VARIANTS[request.param]
        found: Recovery = RECOVERIES.create(name, **settings)
        return found
