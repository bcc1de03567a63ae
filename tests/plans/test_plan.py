from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparsity_search.config.load import load_config
from sparsity_search.config.schema import RunConfig
from sparsity_search.engine.plugins import find_kind
from sparsity_search.errors import ConfigError
from sparsity_search.plans.plan import Plan, choose_minutes, list_plans, load_plan, resolve_plan
from sparsity_search.registry import ALLOCATORS, PRUNERS


def config(**options: Any) -> RunConfig:
    return load_config(None, {"model.name": "tiny", "budget.sparsity": 0.6, **options})


def resolve(**options: Any) -> tuple[RunConfig, Plan]:
    asked = config(**options)
    return resolve_plan(asked, find_kind(asked))


@pytest.mark.parametrize("name", list_plans())
def test_plans_name_plugins_that_exist(name: str) -> None:
    plan = load_plan(name)
    assert plan.about
    for pruner in filter(None, (plan.pruner, plan.finalise)):
        PRUNERS.get(pruner)
    for step in plan.steps:
        for allocator in (*(step.starts or ()), *filter(None, [step.allocate])):
            ALLOCATORS.get(allocator)
        if step.rebuild is not None:
            PRUNERS.get(step.rebuild.name)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({}, "weights"),
        ({"pruner.name": "sparsegpt"}, "weights"),
        ({"space": "per_block"}, "weights"),
        ({"supernet.store": "disk", "ladder.candidates": 4}, "weights"),
        ({"pruner.name": "wanda", "pruner.pattern": "2:4"}, "patterns"),
        ({"space": "n_of_eight"}, "patterns"),
        ({"model.units": "width", "pruner.name": "structured_obs"}, "structures"),
        ({"pruner.name": "drop"}, "structures"),
        ({"budget.saving": 0.2, "measure.name": "flops"}, "savings"),
        ({"space": "owl_grid"}, "study"),
        ({"study.stages": 2}, "study"),
        ({"study.rounds": 3}, "study"),
        ({"study.workers": 2}, "study"),
        ({"plan": "study"}, "study"),
        ({"plan": "quick", "study.rounds": 3}, "quick"),
        ({"plan": "evopress"}, "study"),
    ],
)
def test_what_is_removed_and_how_chooses_the_plan(given: dict[str, Any], name: str) -> None:
    _, plan = resolve(**given)
    assert plan.about == load_plan(name).about


def test_the_plain_command_has_the_pruners_of_its_plan() -> None:
    resolved, plan = resolve()
    asked = load_plan("weights")
    assert resolved.pruner.name == asked.pruner
    assert resolved.finalise is not None
    assert resolved.finalise.name == asked.finalise
    assert resolved.initial == []
    assert plan.steps[-1] == asked.steps[-1]


@pytest.mark.parametrize("given", [{"pruner.name": "sparsegpt"}, {"finalise.name": "refit"}])
def test_a_pruner_by_hand_prunes_what_is_shipped(given: dict[str, str]) -> None:
    asked = config(**given)
    resolved, plan = resolve(**given)
    assert resolved.finalise == asked.finalise
    assert all(step.rebuild is None for step in plan.steps)
    others = [step for step in load_plan("weights").steps if step.rebuild is None]
    assert len(plan.steps) == len(others)


def test_starts_by_hand_replace_those_of_the_plan_alone() -> None:
    _, plan = resolve(initial=["owl", "uniform", "lamp", "owl"])
    _, usual = resolve()
    assert [step.allocate for step in plan.steps[:2]] == ["owl", "lamp"]
    assert plan.steps[2:] == usual.steps[1:]


def test_a_study_by_hand_has_its_starts_and_its_pruner() -> None:
    given = {"initial": ["owl", "uniform"], "study.rounds": 3, "pruner.name": "magnitude"}
    resolved, plan = resolve(**given)
    assert resolved == config(**given)
    assert [step.allocate for step in plan.steps] == ["owl", None]
    assert plan.steps[-1].search == {}


@pytest.mark.parametrize(
    ("steps", "given", "minutes"),
    [
        ([{"search": {}}], {}, 10),
        ([{"search": {}}], {"study.rounds": 5}, None),
        ([{"search": {}}], {"study.rounds": 5, "study.minutes": 3}, 3),
        ([{"search": {"study": {"rounds": 5}}}], {}, None),
        ([{"search": {"study": {"rounds": 5}}}], {"study.minutes": 3}, 3),
        ([{"search": {"study": {"rounds": 5}}}, {"search": {}}], {}, 10),
        ([{"allocate": "owl"}], {}, None),
    ],
)
def test_a_plan_of_counts_has_no_minutes(
    steps: list[Any], given: dict[str, Any], minutes: float | None
) -> None:
    plan = Plan.model_validate({"steps": steps})
    assert choose_minutes(config(**given), plan) == minutes


def test_a_preset_is_a_plan_under_the_settings_of_the_user() -> None:
    asked = config(plan="evopress", **{"pruner.name": "wanda", "study.rounds": 5})
    preset = load_config(Path("evopress"), {"model.name": "tiny", "budget.sparsity": 0.6})
    assert asked.plan == "study"
    assert asked.ladder == preset.ladder
    assert (asked.pruner.name, asked.study.rounds) == ("wanda", 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: [{}]", "exactly one of starts, allocate, search and rebuild"),
        ("steps: [{allocate: owl, rebuild: alps}]", "exactly one of"),
        ("steps: [{allocat: owl}]", "allocat"),
        ("pruner: wanda", "steps"),
        ("steps: [", "YAML"),
    ],
)
def test_an_illegal_file_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_plan(str(file))
    assert "\n" not in str(caught.value)


def test_an_unknown_name_has_a_near_one() -> None:
    with pytest.raises(ConfigError, match="weights"):
        load_plan("weigths")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--plan .*none\.yaml"):
        load_plan(str(tmp_path / "none.yaml"))
