from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from sparsity_search.engine.given_profile import GivenProfile
from sparsity_search.errors import ConfigError, UnknownNameError
from sparsity_search.interfaces.searcher import Searcher
from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.registry import (
    ALLOCATORS,
    EVALUATORS,
    PRUNERS,
    SEARCHERS,
    Factory,
    Registry,
    describe,
)
from sparsity_search.searchers.evolution import EvolutionSearcher

REGISTRIES = [ALLOCATORS, EVALUATORS, PRUNERS, SEARCHERS]
OUTSIDE = """
from dataclasses import dataclass
from sparsity_search.interfaces.searcher import Searcher

@dataclass(frozen=True, kw_only=True)
class Mine(Searcher):
    width: int = 3

    def propose(self, space, history, n, rng):
        return iter(())

class Other:
    pass

def function():
    pass
"""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "outside_plugin.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(tmp_path)
    return "outside_plugin"


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda r: r.kind)
def test_every_name_gives_a_plugin_of_its_kind(registry: Registry) -> None:
    names = registry.names()
    assert names == sorted(set(names))
    assert names
    assert not any(name == "bases" or name.startswith("_") for name in names)
    for name in names:
        assert type(registry.create(name)) is registry.get(name)
        assert registry.get(name).__module__ == f"{registry.package}.{name}"


def test_known_plugins_are_there() -> None:
    assert {"evolution", "random"} <= set(SEARCHERS.names())
    assert {"owl", "uniform"} <= set(ALLOCATORS.names())
    assert {"kl_divergence", "perplexity"} <= set(EVALUATORS.names())
    assert {"magnitude", "sparsegpt", "wanda"} <= set(PRUNERS.names())


@pytest.mark.parametrize("name", ["evolutoin", "bases", "", "_order"])
def test_unknown_name(name: str) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown searcher .*Known: .*evolution"):
        SEARCHERS.get(name)


def test_unknown_name_says_what_is_near() -> None:
    with pytest.raises(UnknownNameError, match=r"'evolutoin': did you mean 'evolution'\?"):
        SEARCHERS.create("evolutoin")


def test_settings() -> None:
    assert SEARCHERS.create("evolution", max_switches=5) == EvolutionSearcher(max_switches=5)
    with pytest.raises(ConfigError, match=r"searcher 'evolution' has no setting 'max_swithces': "
                                          r"did you mean 'max_switches'"):  # fmt: skip
        SEARCHERS.create("evolution", max_swithces=5)
    with pytest.raises(ConfigError, match=r"'evolution'.*at least 1"):
        SEARCHERS.create("evolution", max_switches=0)
    with pytest.raises(ConfigError, match="'uniform' has no setting 'm': it has none"):
        ALLOCATORS.create("uniform", m=3)


def test_values_of_the_wrong_type() -> None:
    for registry, name, settings, words in (
        (SEARCHERS, "evolution", {"max_switches": "many"}, "max_switches: must be .*integer"),
        (SEARCHERS, "evolution", {"max_switches": True}, "max_switches: must be .*integer"),
        (SEARCHERS, "evolution", {"strides": 2}, "strides: must be .*list, not 2"),
        (ALLOCATORS, "owl", {"m": "abc"}, "m: must be .*number, not 'abc'"),
        (ALLOCATORS, "owl", {"m": float("inf")}, "m: must be a finite number"),
        (ALLOCATORS, "owl", {"m": [[1]] * 999}, r"m: must be .*number, not \(\(1,\), .*\.\.\."),
        (ALLOCATORS, "knapsack", {"levels": "abc"}, "levels: must be .*list"),
        (ALLOCATORS, "knapsack", {"tied": 5}, "tied cannot be 5"),
        (ALLOCATORS, "by_role", {"offsets": 5}, "offsets cannot be 5"),
    ):
        with pytest.raises(ConfigError, match=f"^{registry.kind} '{name}': {words}") as refusal:
            registry.create(name, **settings)
        assert len(str(refusal.value)) < 200


def test_a_value_stays_as_it_was_given() -> None:
    assert describe(ALLOCATORS.create("owl", m=5)).startswith("OWL(m=5,")  # a float field
    assert ALLOCATORS.create("besa", width=float("inf")) == ALLOCATORS.create("besa")


def test_from_outside(outside: str) -> None:
    plugin = SEARCHERS.create(f"{outside}:Mine", width=7)
    assert isinstance(plugin, Searcher)
    assert repr(plugin) == "Mine(width=7)"
    with pytest.raises(ConfigError, match="has no setting 'widht': did you mean 'width'"):
        SEARCHERS.create(f"{outside}:Mine", widht=7)


@pytest.mark.parametrize("name", ["Yours", ""])
def test_no_such_class_outside(outside: str, name: str) -> None:
    with pytest.raises(UnknownNameError, match="cannot load searcher"):
        SEARCHERS.get(f"{outside}:{name}")


@pytest.mark.parametrize("name", ["nowhere:Mine", "nowhere.inner:Mine"])
def test_no_such_module_outside(name: str) -> None:
    with pytest.raises(UnknownNameError, match="cannot load searcher"):
        SEARCHERS.get(name)


@pytest.mark.parametrize("name", ["Other", "function"])
def test_not_a_plugin_outside(outside: str, name: str) -> None:
    with pytest.raises(ConfigError, match="is not a Searcher"):
        SEARCHERS.get(f"{outside}:{name}")
    with pytest.raises(ConfigError, match="is not a Pruner"):
        PRUNERS.get(f"{outside}:Mine")


@pytest.mark.parametrize("n_classes", [0, 2])
def test_a_file_defines_exactly_one_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_classes: int
) -> None:
    package = f"toy_plugins_{n_classes}"
    folder = tmp_path / package
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "bases").mkdir()
    (folder / "bases" / "__init__.py").write_text("class Toy: pass\n")
    (folder / "_shared.py").touch()
    classes = [f"class T{i}(Toy): pass" for i in range(n_classes)]
    (folder / "broken.py").write_text("\n".join([f"from {package}.bases import Toy", *classes]))
    monkeypatch.syspath_prepend(tmp_path)
    registry: Registry = Registry("toy", package, f"{package}.bases:Toy")
    assert registry.names() == ["broken"]
    assert f"{package}.broken" not in sys.modules
    with pytest.raises(TypeError, match="exactly one Toy"):
        registry.get("broken")


def test_a_plugin_as_a_setting() -> None:
    wanda = PRUNERS.create("wanda")
    settings = {"name": "wanda", "pattern": "2:4"}
    assert Factory().resolve(PRUNERS, wanda) is wanda
    assert Factory().resolve(PRUNERS, "wanda") == wanda
    assert Factory().resolve(PRUNERS, settings) == PRUNERS.create("wanda", pattern="2:4")
    assert settings["name"] == "wanda", "the caller's mapping is left alone"


@pytest.mark.parametrize(
    ("value", "named"),
    [(3, "must be a name"), ({"pattern": "2:4"}, "needs a name"), ({}, "needs")],
)
def test_no_plugin_as_a_setting(value: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Factory().resolve(PRUNERS, value)


def test_describe_is_the_class_without_its_kind_and_all_settings() -> None:
    assert describe(PRUNERS.create("wanda")) == "Wanda(pattern='row')"
    nested = PRUNERS.create("refit", mask={"name": "wanda", "pattern": "2:4"})
    assert "mask=Wanda(pattern='2:4')" in describe(nested)
    assert describe(3) == "3"


def test_describe_takes_a_plugins_own_text() -> None:
    profile = SparsityProfile(Layout([Unit(name="a", block=0, role="q", count=4)]), (2,))
    assert describe(GivenProfile(profile=profile)) == f"GivenProfile({profile.digest})"


# --- the factory ---------------------------------------------------------------------------------


def test_nested_plugins_share_what_the_run_gives() -> None:
    """A start of a start has the run's pruner, seed and its own section."""
    shared = {"pruner": PRUNERS.create("sparsegpt"), "seed": 3}
    sections = {"allocator": {"knapsack": {"use_pairs": True, "levels": [0.5, 0.75]}}}
    build = Factory(sections=sections, shared={"allocator": shared})
    start = {"name": "gauss_newton", "start": "knapsack"}
    outer = build.create(ALLOCATORS, "gauss_newton", {"start": start})
    for plugin in (outer, outer.start, outer.start.start):
        assert plugin.pruner == shared["pruner"]
        assert plugin.seed == 3
    assert outer.start.start.use_pairs
    assert outer.start.start.levels == (0.5, 0.75)


def test_defaults_that_are_plugins_have_the_context_too() -> None:
    build = Factory(sections={"sensitivity": {"fisher": {"sequences": 3}}})
    assert build.create(ALLOCATORS, "knapsack", {}).sensitivity.sequences == 3


def test_the_nearest_value_wins() -> None:
    """The caller's settings, then the section, then what is shared, then the default."""
    shared = {"seed": 1}
    section = {"allocator": {"knapsack": {"seed": 2}}}
    assert Factory().create(ALLOCATORS, "knapsack", {}).seed == 0
    build = Factory(shared={"allocator": shared})
    assert build.create(ALLOCATORS, "knapsack", {}).seed == 1
    build = Factory(shared={"allocator": shared}, sections=section)
    assert build.create(ALLOCATORS, "knapsack", {}).seed == 2
    assert build.create(ALLOCATORS, "knapsack", {"seed": 4}).seed == 4


def test_a_section_that_nests_its_own_name_applies_once() -> None:
    sections = {"allocator": {"gauss_newton": {"start": "gauss_newton", "steps": 2}}}
    outer = Factory(sections=sections).create(ALLOCATORS, "gauss_newton", {})
    assert (outer.steps, outer.start) == (2, ALLOCATORS.create("gauss_newton"))
    cycle = {"allocator": {"gauss_newton": {"start": {"name": "gauss_newton", "stages": 3}}}}
    start = Factory(sections=cycle).create(ALLOCATORS, "gauss_newton", {}).start
    assert (start.stages, start.start) == (3, ALLOCATORS.create("uniform"))


def test_only_settings_without_a_default_may_be_empty() -> None:
    assert PRUNERS.create("sparsegpt", mask=None).mask is None
    with pytest.raises(ConfigError, match="allocator must be a name"):
        ALLOCATORS.create("gauss_newton", start=None)


def test_what_is_shared_goes_only_to_plugins_that_have_it() -> None:
    build = Factory(shared={"allocator": {"seed": 1, "pruner": PRUNERS.create("wanda")}})
    assert build.create(ALLOCATORS, "uniform", {}) == ALLOCATORS.create("uniform")
