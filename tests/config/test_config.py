from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sparsity_search.config.load import load_config
from sparsity_search.config.schema import RunConfig, flatten
from sparsity_search.errors import ConfigError, UnknownNameError
from sparsity_search.trials.ladder import Ladder, Rung

NEEDED: dict[str, Any] = {"model.name": "tiny", "budget.sparsity": 0.5}


def load(*overrides: str, **options: Any) -> RunConfig:
    return load_config(None, {**NEEDED, **options}, overrides)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


def from_file(path: Path, value: Any, *overrides: str) -> RunConfig:
    path.write_text(yaml.safe_dump(value))
    return load_config(path, NEEDED, overrides)


def test_defaults() -> None:
    config = load()
    assert (config.model.name, config.budget.sparsity) == ("tiny", 0.5)
    assert (config.pruner.name, config.searcher.name) == ("wanda", "evolution")
    assert config.ladder == Ladder()


def test_what_wins(path: Path) -> None:
    path.write_text("study: {seed: 1, rounds: 2, minutes: 3}\nbudget: {sparsity: 0.1}")
    options = {**NEEDED, "study.rounds": 20, "study.minutes": 30, "study.seed": None}
    study = load_config(path, options, ["study.minutes=300"]).study
    assert (study.seed, study.rounds, study.minutes) == (1, 20, 300)


def test_what_is_needed() -> None:
    with pytest.raises(ConfigError, match="model: Field required"):
        load_config(None, {})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"budgt": {}}, r"unknown key 'budgt': did you mean 'budget'\?"),
        ({"ladder": {"candidats": 3}}, r"'ladder.candidats': did you mean 'candidates'\?"),
        ({"model": {"name": "x", "dtyp": "auto"}}, r"'model.dtyp': did you mean 'dtype'\?"),
        (
            {"ladder": {"rungs": [{"token": 3, "tokens": 8, "survivors": 1}]}},
            r"'ladder.rungs.0.token': did you mean 'tokens'\? Known: parents, survivors, tokens",
        ),
        ({"study": {"zzz": 1}}, r"'study.zzz': Known: minutes, rounds, seed, stages, storage"),
    ],
)
def test_unknown_key(path: Path, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_file(path, value)


def test_all_faults_are_told_together() -> None:
    with pytest.raises(ConfigError) as error:
        load("study.seed=x", "study.round=3", "data.search_length=1", "model.dtype=int8")
    for part in (
        "study.seed: ",
        "unknown key 'study.round': did you mean 'rounds'",
        "data.search_length: ",
        "model.dtype: ",
        "not 'int8'",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("study.seed=7", "study.seed", 7),
        ("model.exclude=a=b", "model.exclude", "a=b"),
        ("initial=[uniform, a.json]", "initial", ["uniform", "a.json"]),
        ("budget.bounds={q: [0, 0.5]}", "budget.bounds.q", [0.0, 0.5]),
        ("budget.bounds.q=[0, 0.5]", "budget.bounds.q", [0.0, 0.5]),
        ("ladder.rungs=[{tokens: 8, survivors: 2}]", "ladder.rungs",
         [{"tokens": 8, "survivors": 2, "parents": None}]),
        ("model.revision=null", "model.revision", None),
        ("model.revision=", "model.revision", None),
        ("ladder.fresh=true", "ladder.fresh", True),
        ("pruner.damping=0.1", "pruner.damping", 0.1),
    ],
)  # fmt: skip
def test_set(override: str, key: str, value: Any) -> None:
    config = load(override, **{"pruner.name": "sparsegpt"})
    assert flatten(config.model_dump(mode="json"))[key] == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("study.seed", "--set needs section.key=value"),
        ("=3", "--set needs section.key=value"),
        ("study.seed=[", "--set study.seed: not YAML"),
        ("study.seed.x=3", "study"),
        ("space.x.y=3", "space"),
    ],
)
def test_set_faults(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(override, **{"study.seed": 1})


def test_plugins_by_name_alone(path: Path) -> None:
    config = from_file(path, {"pruner": "sparsegpt", "searcher": "random"}, "evaluator=perplexity")
    names = (config.pruner.name, config.searcher.name, config.evaluator.name)
    assert names == ("sparsegpt", "random", "perplexity")
    assert config.pruner.parameters == {}


def test_parameters_of_plugins(path: Path) -> None:
    value = {"searcher": {"name": "evolution", "strides": [1, 4], "within": "role"}}
    config = from_file(path, value, "pruner=sparsegpt", "pruner.damping=0.1")
    assert config.searcher.parameters == {"strides": [1, 4], "within": "role"}
    assert (config.pruner.name, config.pruner.parameters) == ("sparsegpt", {"damping": 0.1})


@pytest.mark.parametrize("override", ["pruner=magnitude", "pruner.name=magnitude"])
def test_another_plugin_drops_the_parameters(path: Path, override: str) -> None:
    value = {"pruner": {"name": "sparsegpt", "damping": 0.1}}
    config = from_file(path, value, override, "pruner.pattern=row")
    assert (config.pruner.name, config.pruner.parameters) == ("magnitude", {"pattern": "row"})


def test_the_same_plugin_keeps_them(path: Path) -> None:
    value = {"pruner": {"name": "sparsegpt", "damping": 0.1}}
    assert from_file(path, value, "pruner.name=sparsegpt").pruner.parameters == {"damping": 0.1}


def test_another_model_keeps_its_section(path: Path) -> None:
    config = from_file(path, {"model": {"name": "other", "dtype": "float32"}})
    assert (config.model.name, config.model.dtype) == ("tiny", "float32")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ladder.rungs=[{tokens: 8, survivors: 2}, {tokens: 8, survivors: 1}]", "must rise"),
        ("ladder={candidates: 2, rungs: [{tokens: 8, survivors: 4}]}", "keeps 4 of 2"),
        ("ladder.rungs=[]", "at least one rung"),
    ],
)
def test_ladder_faults(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(override)


def test_ladder() -> None:
    rungs = "ladder.rungs=[{tokens: 8, survivors: 2}]"
    config = load(rungs, "ladder.candidates=5", "ladder.fresh=true")
    assert config.ladder == Ladder(candidates=5, rungs=(Rung(8, 2),), fresh=True)


@pytest.mark.parametrize("text", ["a: [", "- 1", "3", "a: &b [*b]", "a: 1\na: 2", "[" * 99])
def test_not_a_configuration(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        load_config(path, NEEDED)


def test_an_empty_file_changes_nothing(path: Path) -> None:
    path.write_text("# nothing\n")
    assert load_config(path, NEEDED) == load_config(None, NEEDED)


def test_no_such_file(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--config .*cannot read .*No such file"):
        load_config(path, NEEDED)


def test_no_python_objects_from_yaml(path: Path) -> None:
    path.write_text("model: !!python/object/apply:os.getcwd []")
    with pytest.raises(ConfigError, match="tags"):
        load_config(path, NEEDED)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("study.minutes=.inf", "study.minutes: .*finite"),
        ("study.seed=-1", "study.seed: .*not -1"),
        ("allocators.owll.m=3", r"'allocators.owll': did you mean 'owl'"),
        ("study.rounds=1000000000000000000000", "too large"),
    ],
)
def test_values_out_of_bounds(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(override)


def test_identity_is_what_results_depend_on() -> None:
    plain = load().identity()
    same = load("study.rounds=3", "study.minutes=1", "study.storage=sqlite://",
                "supernet.store=disk", "supernet.cache=here", "data.statistics=here")  # fmt: skip
    assert same.identity() == plain
    for override in ("study.seed=1", "pruner=magnitude", "searcher.name=random",
                     "ladder.fresh=true", "data.search_length=99"):  # fmt: skip
        assert load(override).identity() != plain


def test_configurations_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().study.seed = 3


@pytest.mark.parametrize("section", ["pruner", "finalise", "searcher", "evaluator", "sensitivity"])
def test_plugins_are_known_by_name_before_any_is_imported(section: str) -> None:
    options = {"model.name": "m", "budget.sparsity": 0.5, f"{section}.name": "nothing_like_it"}
    with pytest.raises(UnknownNameError, match="nothing_like_it"):
        load_config(None, options)
    own = {**options, f"{section}.name": "my_plugins.mine:Mine"}
    assert getattr(load_config(None, own), section).name == "my_plugins.mine:Mine"
