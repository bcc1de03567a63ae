"""Facts that several files of the project state, and that must agree."""

from __future__ import annotations

import ast
import re
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import yaml
from packaging.specifiers import SpecifierSet

import sparsity_search
from tests.test_layering import LAYERS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(re.findall(r"(?m)^([\w.-]+)==(.+)$", (ROOT / "constraints.txt").read_text()))


def test_the_version_is_one() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["version"] == sparsity_search.__version__ == citation["version"]


def test_hooks_have_the_pinned_ruff() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (ruff,) = (hook for hook in hooks if "ruff" in hook["repo"])
    assert ruff["rev"] == f"v{PINS['ruff']}"


def test_what_the_set_up_installs_is_pinned() -> None:
    extras = PROJECT["optional-dependencies"]
    named = re.search(r"\[(.+)\]", extras["dev"][0])
    assert named is not None
    lines = [*PROJECT["dependencies"], *extras["dev"][1:]]
    lines += [line for extra in named[1].split(",") for line in extras[extra]]
    required = {re.split(r"[<>=]", line)[0] for line in lines}
    assert len(required) > 20
    assert required <= PINS.keys()


def test_the_pins_are_for_the_first_release_of_the_oldest_python() -> None:
    oldest = f"{PROJECT['requires-python'].removeprefix('>=')}.0"
    pinned = {name.lower().replace("_", "-") for name in PINS}
    found = [d for d in distributions() if d.name.lower().replace("_", "-") in pinned]
    assert len(found) > 20
    needs = {d.name: d.metadata.get("Requires-Python") or "" for d in found}
    assert [name for name, need in needs.items() if oldest not in SpecifierSet(need)] == []


def test_the_folders_of_the_architecture_are_the_layers() -> None:
    lines = (ROOT / "docs/architecture.md").read_text().splitlines()
    rows = [line.split("|")[1] for line in lines if line.startswith("| `")]
    assert [tuple(re.findall(r"`(\w+)`", row)) for row in rows] == list(LAYERS)


def test_the_reference_lists_the_public_names_and_where_they_are() -> None:
    text = (ROOT / "docs/reference/index.md").read_text()
    names = re.findall(r"`(\w+)`", text.partition("|---|")[2].partition("\n\n")[0])
    assert sorted({*names} - {"Registry"}) == sparsity_search.__all__
    for name, home in re.findall(r"\[`(\w+)`\]\[sparsity_search\.([\w.]+)\.\w+\]", text):
        if name != "Registry":
            plugin = getattr(sparsity_search, name)
            assert plugin.__module__ == f"sparsity_search.{home}", name


def test_type_checkers_see_the_public_names() -> None:
    tree = ast.parse((ROOT / "sparsity_search/__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    homes = {
        alias.name: str(node.module).removeprefix("sparsity_search.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    homes |= {
        node.target.id: "registry"
        for node in block.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    assert homes == sparsity_search._HOME
