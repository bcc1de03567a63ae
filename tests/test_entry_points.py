"""Plugins of installed packages: in every list, constructed by name, and harmless when broken."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sparsity_search.cli.main import app
from sparsity_search.errors import BrokenPluginWarning, ConfigError, UnknownNameError
from sparsity_search.registry import (
    ALLOCATORS,
    EVALUATORS,
    FORMATS,
    MEASURES,
    PRUNERS,
    RECOVERIES,
    SEARCHERS,
    SENSITIVITIES,
    UNITS,
    Registry,
)
from tests.helpers.installed import install

REGISTRIES = {
    "pruners": PRUNERS,
    "allocators": ALLOCATORS,
    "searchers": SEARCHERS,
    "evaluators": EVALUATORS,
    "sensitivities": SENSITIVITIES,
    "measures": MEASURES,
    "formats": FORMATS,
    "recoveries": RECOVERIES,
    "units": UNITS,
}
#: A subclass of a shipped plugin is a plugin of its kind.
SHIPPED = {
    "pruners": "magnitude",
    "allocators": "uniform",
    "searchers": "random",
    "evaluators": "perplexity",
    "sensitivities": "layer_error",
    "measures": "flops",
    "formats": "csv",
    "recoveries": "block",
    "units": "heads",
}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def source(registry: Registry, kind: str) -> str:
    base = registry.get(SHIPPED[kind])
    return (
        "from dataclasses import dataclass\n"
        f"from {base.__module__} import {base.__qualname__}\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        f"class Mine({base.__qualname__}):\n"
        '    """A plugin from outside."""\n'
        "    strength: float = 0.5\n"
    )


@pytest.mark.parametrize("kind", REGISTRIES)
def test_an_installed_plugin_is_one_of_its_kind(site: Path, kind: str) -> None:
    registry, module = REGISTRIES[kind], f"outside_{kind}"
    before = registry.names()
    points = {f"sparsity_search.{kind}": {"mine": f"{module}:Mine"}}
    install(site, "mine", {module: source(registry, kind)}, points)
    assert registry.names() == sorted([*before, "mine"])
    plugin = registry.create("mine", strength=2.0)
    assert type(plugin).__module__ == module
    assert plugin.strength == 2.0
    shown = CliRunner().invoke(app, ["ls", kind]).output
    assert "A plugin from outside. [" in " ".join(shown.split())
    assert "strength=0.5" in shown
    others = {name for name, registry in REGISTRIES.items() if "mine" in registry.names()}
    assert others == {kind}


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("raise RuntimeError('no luck')", "broken:Mine"),
        ("import nowhere_at_all", "broken:Mine"),
        ("this is no python", "broken:Mine"),
        ("", "broken:Mine"),
        ("", "broken:"),
        ("class Mine: pass", "broken:Mine"),
        ("def Mine(): pass", "broken:Mine"),
    ],
)
def test_a_broken_plugin_is_one_line_and_stops_no_other(
    site: Path, monkeypatch: pytest.MonkeyPatch, module: str, target: str
) -> None:
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    good = source(PRUNERS, "pruners")
    points = {"sparsity_search.pruners": {"bad": target, "good": "outside_good:Mine"}}
    install(site, "theirs", {"broken": module, "outside_good": good}, points)
    with pytest.raises((UnknownNameError, ConfigError)) as caught:
        PRUNERS.create("bad")
    assert "'bad'" in str(caught.value)
    assert "theirs" in str(caught.value), "which package is broken"
    with pytest.warns(BrokenPluginWarning, match="'bad'") as seen:
        summaries = PRUNERS.summaries()
    assert len(seen) == 1
    assert {"good", "wanda"} <= set(summaries)
    assert "bad" not in summaries
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert PRUNERS.create("good")
        assert PRUNERS.create("wanda")


def test_a_shipped_plugin_keeps_its_name(site: Path) -> None:
    points = {"sparsity_search.pruners": {"wanda": "outside_wanda:Mine"}}
    install(site, "mine", {"outside_wanda": source(PRUNERS, "pruners")}, points)
    assert PRUNERS.names().count("wanda") == 1
    assert PRUNERS.get("wanda").__module__ == "sparsity_search.pruners.wanda"
