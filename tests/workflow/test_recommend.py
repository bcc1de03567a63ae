from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparsity_search.config.load import load_config
from sparsity_search.config.schema import RunConfig
from sparsity_search.errors import ConfigError
from sparsity_search.plans.methods import (
    BACKWARD,
    SEARCH_PASSES,
    MachineSpeed,
    MeasuredGain,
    Method,
    load_methods,
)
from sparsity_search.registry import ALLOCATORS, PRUNERS
from sparsity_search.testing.models import save_tiny_model
from sparsity_search.trials.ladder import Ladder
from sparsity_search.workflow.recommend import choose, recommend


def gain(pruner: str, sparsity: float, ratio: float) -> MeasuredGain:
    return MeasuredGain(pruner=pruner, sparsity=sparsity, ratio=ratio, source="test")


def method(name: str, forward: float, *measured: MeasuredGain, **fields: Any) -> Method:
    return Method(name=name, allocator=name, forward=forward, measured=measured, **fields)


def config(*overrides: str, pruner: str = "wanda") -> RunConfig:
    return load_config(None, {"model.name": "tiny", "pruner.name": pruner}, overrides)


#: 16,384 tokens of calibration text take a minute.
MACHINE = MachineSpeed(60 / 16384, 2_000_000)
KNOWN = [
    method("uniform", 0, gain("wanda", 0.7, 1.0)),
    method("weak", 1, gain("wanda", 0.7, 0.9), gain("sparsegpt", 0.7, 1.1)),
    method("unmeasured", 1),
    method("good", 4, gain("wanda", 0.7, 0.6), gain("sparsegpt", 0.7, 0.8)),
    method("best", 9, gain("wanda", 0.6, 0.5)),
]


@pytest.mark.parametrize(
    ("minutes", "pruner", "chosen"),
    [
        (0, "wanda", "uniform"),
        (0.99, "wanda", "uniform"),
        (1.01, "wanda", "weak"),
        (3.99, "wanda", "weak"),
        (4.01, "wanda", "good"),
        (1000, "wanda", "best"),
        (1000, "sparsegpt", "good"),  # the best has a gain with another pruner only
        (3, "sparsegpt", "uniform"),
        (1000, "ria", "best"),
    ],
)
def test_the_best_gain_that_fits_the_time(minutes: float, pruner: str, chosen: str) -> None:
    found = choose(KNOWN, MACHINE, config(pruner=pruner), 0.7, minutes)
    assert found.chosen.method.name == chosen
    times = [entry.seconds for entry in found.methods]
    assert times == sorted(times)
    assert len(found.methods) == len(KNOWN)


def test_of_equal_gains_the_quickest() -> None:
    known = [method("slow", 2, gain("wanda", 0.7, 0.6)),
             method("quick", 1, gain("wanda", 0.7, 0.6))]  # fmt: skip
    assert choose(known, MACHINE, config(), 0.7, 10).chosen.method.name == "quick"


def test_why_names_what_would_be_better() -> None:
    why = choose(KNOWN, MACHINE, config(), 0.7, 2).why
    assert "weak has the best measured gain of what fits 2 min: 0.9 times" in why
    assert "wanda at 70%: test" in why
    assert "good would need 4 min" in why
    assert "would need" not in choose(KNOWN, MACHINE, config(), 0.7, 20).why


def test_nothing_fits() -> None:
    with pytest.raises(ConfigError, match="fits this time"):
        choose(KNOWN[1:], MACHINE, config(), 0.7, 0)


def test_the_nearest_gain_counts() -> None:
    found = method("x", 0, gain("wanda", 0.5, 0.1), gain("wanda", 0.7, 0.2),
                   gain("sparsegpt", 0.55, 0.3))  # fmt: skip
    assert found.find_gain("wanda", 0.62).ratio == 0.2  # type: ignore[union-attr]
    assert found.find_gain("sparsegpt", 0.7).ratio == 0.3  # type: ignore[union-attr]
    assert found.find_gain("ria", 0.57).ratio == 0.3  # type: ignore[union-attr]
    assert method("y", 0).find_gain("wanda", 0.5) is None


def test_costs() -> None:
    calibration = config("data.calibration_sequences=8", "data.calibration_length=512")
    assert method("x", 3).seconds(MACHINE, calibration) == pytest.approx(3 * 15)
    assert method("x", 3, tokens=8192).seconds(MACHINE, calibration) == pytest.approx(90)
    assert method("x", 1, backward=2).seconds(MACHINE, config()) == pytest.approx(
        60 * (1 + 2 * BACKWARD)
    )
    assert method("x", 0, seconds_per_million=3).seconds(MACHINE, config()) == pytest.approx(6)


def test_a_search_costs_its_rounds() -> None:
    tokens = 12 * 512 + 2 * 2048
    assert Ladder().candidates == 12
    found = method("search", 0, rounds=10).seconds(MACHINE, config())
    assert found == pytest.approx(60 * (10 * tokens / 16384 + SEARCH_PASSES))
    short = config("ladder.rungs=[{tokens: 512, survivors: 1}]", "ladder.candidates=4")
    found = method("search", 0, rounds=10).seconds(MACHINE, short)
    assert found == pytest.approx(60 * (10 * 4 * 512 / 16384 + SEARCH_PASSES))


def test_every_method_can_be_run() -> None:
    known = load_methods()
    assert known[0].name == "uniform"
    assert len({entry.name for entry in known}) == len(known)
    for entry in known:
        assert (entry.allocator is None) == (entry.rounds is not None)
        assert entry.allocator is None or entry.allocator in ALLOCATORS.names()
        assert entry.allocator is None or ALLOCATORS.get(entry.allocator).units[0] == "weights"
        for found in entry.measured:
            assert found.pruner in PRUNERS.names()
            assert 0 < found.sparsity < 1
            assert 0 < found.ratio < 20


def test_methods_that_read_no_text_take_no_passes() -> None:
    for entry in load_methods():
        if entry.allocator is not None:
            reads = bool(entry.forward or entry.backward)
            assert reads == ALLOCATORS.get(entry.allocator).needs_text, entry.name


def test_a_model_is_timed(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "tiny")
    options = {"model.name": str(tmp_path / "tiny"), "budget.sparsity": 0.7}
    found = recommend(load_config(None, options), 0)
    assert 0 < found.machine.seconds_per_token < 0.1
    assert found.machine.weights == 27648
    assert found.chosen.seconds == 0
    assert recommend(load_config(None, options), 600).chosen.method.name == "gauss_newton"


@pytest.mark.parametrize(
    ("options", "minutes", "message"),
    [
        ({}, -1, "minutes"),
        ({}, float("nan"), "minutes"),
        ({"budget.sparsity": 1.0}, 1, "sparsity"),
        ({"pruner.name": "flap"}, 1, "no measured gains for width"),
    ],
)
def test_refused_before_any_work(
    options: dict[str, Any], minutes: float, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = "sparsity_search.workflow.recommend.open_session"
    monkeypatch.setattr(target, lambda *_: pytest.fail("the model was loaded"))
    given = {"model.name": "tiny", "budget.sparsity": 0.7, **options}
    with pytest.raises(ConfigError, match=message):
        recommend(load_config(None, given), minutes)
