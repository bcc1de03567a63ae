"""Who may import whom, read from the imports."""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sparsity_search
from sparsity_search.registry import (
    ALLOCATORS,
    EVALUATORS,
    FORMATS,
    MEASURES,
    PRUNERS,
    SEARCHERS,
    SENSITIVITIES,
    UNITS,
)

PACKAGE = "sparsity_search"
ROOT = Path(sparsity_search.__file__).parent
FILES = {
    ".".join([PACKAGE, *file.relative_to(ROOT).with_suffix("").parts]).removesuffix(
        ".__init__"
    ): file
    for file in sorted(ROOT.rglob("*.py"))
}
REGISTRIES = [
    *(ALLOCATORS, EVALUATORS, FORMATS, MEASURES, PRUNERS, SEARCHERS, SENSITIVITIES, UNITS),
]
PLUGINS = {f"{registry.package}.{name}" for registry in REGISTRIES for name in registry.names()}

#: What design.md calls layers: a file imports from its own layer and those before it.
LAYERS = [
    {"errors", "registry", "rng", "artefacts", "layout", "groups", "profile", "budget",
     "levels", "choices", "prices", "hints", "space", "spaces", "parametric", "history", "ladder",
     "scores", "solve", "formats", "transfer", "front", "presets"},
    {"models", "data", "structures", "statistics", "fluctuation", "evidence", "variants",
     "masking"},
    {"pruners", "evaluators", "allocators", "searchers", "sensitivity", "supernet", "measures"},
    {"objective", "realise", "study", "store", "claims"},
    {"report"},
    {"config", "workflow"},
    {"cli", "__main__"},
    {"testing"},
]  # fmt: skip
LAYER = {name: i for i, names in enumerate(LAYERS) for name in names}
ENGINE = {"study", "ladder", "store", "objective", "realise", "supernet", "config", "report"}
NO_TORCH = {*LAYERS[0], "searchers", "study", "store", "config", "report"}


def part(module: str) -> str:
    """Return the folder or file of the package that a module is in."""
    return [*module.split("."), ""][1]


LIBRARY = [module for module in FILES if part(module) not in ("", "testing")]


def imports(module: str) -> Iterator[str]:
    """Yield every module that a file imports, also inside functions; `from a import b` as a.b."""
    for node in ast.walk(ast.parse(FILES[module].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in FILES else str(node.module)


def own_imports(module: str) -> list[str]:
    return [name for name in imports(module) if name.split(".")[0] == PACKAGE]


def test_every_file_has_a_layer() -> None:
    assert {part(module) for module in FILES} - {""} <= set(LAYER)


@pytest.mark.parametrize("module", LIBRARY)
def test_imports_go_down(module: str) -> None:
    for name in own_imports(module):
        if part(name):
            assert LAYER[part(name)] <= LAYER[part(module)], f"{module} imports {name}"


@pytest.mark.parametrize("module", LIBRARY)
def test_nothing_imports_a_concrete_plugin(module: str) -> None:
    named = set(own_imports(module)) & PLUGINS
    assert not named - {module}, f"{module} imports {named}"


def test_plugins_and_engine_are_there() -> None:
    assert set(LIBRARY) >= PLUGINS
    assert {part(module) for module in LIBRARY} >= ENGINE


@pytest.mark.parametrize("module", LIBRARY)
def test_only_the_command_line_imports_itself(module: str) -> None:
    if part(module) not in ("cli", "__main__"):
        assert not [name for name in own_imports(module) if part(name) == "cli"]
    assert not [name for name in own_imports(module) if part(name) == "testing"]


@pytest.mark.parametrize("module", [m for m in LIBRARY if part(m) in NO_TORCH])
def test_numbers_only(module: str) -> None:
    heavy = {"torch", "transformers", "datasets", "safetensors"}
    assert not heavy & {name.split(".")[0] for name in imports(module)}
    if part(module) in LAYERS[0]:
        assert not {"optuna", "typer", "rich"} & {name.split(".")[0] for name in imports(module)}


def test_no_torch_even_indirectly() -> None:
    modules = sorted(m for m in LIBRARY if part(m) in NO_TORCH)
    assert {f"{PACKAGE}.{name}" for name in ("study", "store", "config")} <= set(modules)
    heavy = "{'torch', 'transformers'} & set(sys.modules)"
    code = f"import sys, {', '.join(modules)}; print({heavy})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "set()\n", result.stderr


@pytest.mark.parametrize("module", [m for m in LIBRARY if part(m) != "cli"])
def test_the_library_is_silent(module: str) -> None:
    calls = [node for node in ast.walk(ast.parse(FILES[module].read_text("utf-8")))
             if isinstance(node, ast.Call)]  # fmt: skip
    names = {ast.unparse(call.func) for call in calls}
    assert not names & {"print", "logging.basicConfig", "sys.stdout.write", "sys.stderr.write"}
    assert not {"rich", "typer"} & {name.split(".")[0] for name in imports(module)}


@pytest.mark.parametrize("module", LIBRARY)
def test_no_global_random_state(module: str) -> None:
    text = FILES[module].read_text("utf-8")
    calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(text))
             if isinstance(node, ast.Call)}  # fmt: skip
    seeds = {"torch.manual_seed", "np.random.seed", "random.seed", "torch.seed", "set_seed"}
    assert not calls & seeds


@pytest.mark.parametrize("module", FILES)
def test_files_are_short(module: str) -> None:
    assert len(FILES[module].read_text("utf-8").splitlines()) <= 400


@pytest.mark.parametrize("plugin", sorted(PLUGINS))
def test_a_plugin_is_one_frozen_dataclass(plugin: str) -> None:
    package, _, name = plugin.rpartition(".")
    (registry,) = [registry for registry in REGISTRIES if registry.package == package]
    found = registry.get(name)
    assert found.__dataclass_params__.frozen
    for field in dataclasses.fields(found):
        assert field.kw_only
        assert field.default is not dataclasses.MISSING, f"{field.name} needs a default"
    assert found.__doc__
