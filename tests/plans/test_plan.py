from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparsity_search.config.load import load_config
from sparsity_search.config.schema import RunConfig
from sparsity_search.errors import ConfigError
from sparsity_search.plans.plan import list_plans, load_plan, resolve_plan
from sparsity_search.registry import ALLOCATORS, PRUNERS


def config(**options: Any) -> RunConfig:
    return load_config(None, {"model.name": "tiny", "budget.sparsity": 0.6, **options})


@pytest.mark.parametrize("name", list_plans())
def test_plans_name_plugins_that_exist(name: str) -> None:
    plan = load_plan(name)
    assert plan.about
    PRUNERS.get(plan.pruner)
    for step in plan.steps:
        if step.allocate is not None:
            ALLOCATORS.get(step.allocate)
        if step.finalise is not None:
            PRUNERS.get(step.finalise)


def test_the_plain_command_has_the_best_plan() -> None:
    best = load_plan("best")
    resolved, plan = resolve_plan(config())
    assert plan == best
    assert (resolved.pruner.name, resolved.initial) == (best.pruner, [])


def test_a_named_pruner_replaces_that_of_the_plan_alone() -> None:
    resolved, plan = resolve_plan(config(**{"pruner.name": "wanda"}))
    assert (resolved.pruner.name, plan) == ("wanda", load_plan("best"))


def test_a_named_final_pruner_replaces_that_of_the_plan() -> None:
    resolved, plan = resolve_plan(config(**{"finalise.name": "admm"}))
    assert [step.finalise for step in plan.steps if step.finalise] == ["admm"]
    assert resolved.finalise is None


@pytest.mark.parametrize(
    "given",
    [
        {"initial": ["owl"]},
        {"searcher.name": "random"},
        {"hints": ["fisher"]},
        {"space": "per_block"},
        {"study.stages": 2},
        {"study.rounds": 3},
        {"pruner.name": "wanda", "pruner.pattern": "2:4"},
        {"ladder.candidates": 4},
    ],
)
def test_a_part_that_is_fixed_by_hand_leaves_starts_and_a_study(given: dict[str, Any]) -> None:
    asked = config(**given)
    resolved, plan = resolve_plan(asked)
    assert resolved == asked
    starts = [name for name in asked.initial if name != "uniform"]
    assert [step.allocate for step in plan.steps] == [*starts, None]
    assert plan.steps[-1].search == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: [{}]", "exactly one of allocate, search and finalise"),
        ("steps: [{allocate: owl, finalise: alps}]", "exactly one of"),
        ("steps: [{allocat: owl}]", "unknown key 'steps.0.allocat'"),
        ("pruner: wanda", "steps"),
        ("steps: [", "not YAML"),
    ],
)
def test_an_illegal_file_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_plan(str(file))
    assert "\n" not in str(caught.value)


def test_an_unknown_name_has_a_near_one() -> None:
    with pytest.raises(ConfigError, match="best"):
        load_plan("bets")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read --plan .*none\.yaml"):
        load_plan(str(tmp_path / "none.yaml"))
