"""Who may import whom, read from the imports. Each test lists all violations of one rule."""

from __future__ import annotations

import ast
import dataclasses
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import sparsity_search
from sparsity_search.registry import (
    ALLOCATORS,
    EVALUATORS,
    FORMATS,
    MEASURES,
    PRUNERS,
    RECOVERIES,
    SEARCHERS,
    SENSITIVITIES,
    TRACKERS,
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
REGISTRIES = (
    *(ALLOCATORS, EVALUATORS, FORMATS, MEASURES, PRUNERS, SEARCHERS, SENSITIVITIES),
    *(RECOVERIES, TRACKERS, UNITS),
)

#: A file imports from its own layer and those before it; docs/architecture.md explains them.
LAYERS = (
    ("errors", "utils", "registry"),
    ("profiles",),
    ("spaces", "solvers", "trials"),
    ("models", "evidence", "data"),
    ("interfaces", "config", "plans"),
    ("pruning", "supernet"),
    (
        *("pruners", "allocators", "searchers", "evaluators", "sensitivities", "measures"),
        *("formats", "recoveries", "trackers"),
    ),
    ("study", "runs", "report"),
    ("engine", "workflow"),
    ("cli", "__main__"),
    ("testing",),
)
LAYER = {name: i for i, names in enumerate(LAYERS) for name in names}
#: Folders and modules that work with numbers and names alone.
NO_TORCH = (
    *("errors", "registry", "utils", "profiles", "spaces", "solvers", "trials"),
    *("interfaces.searcher", "interfaces.format", "interfaces.tracker", "searchers", "formats"),
    *("study", "config", "report"),
)


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text("utf-8"))


def part(module: str) -> str:
    """Return the folder or file of the root that a module is in."""
    return [*module.split("."), ""][1]


LIBRARY = [module for module in FILES if part(module) not in ("", "testing")]


@cache
def imports(module: str) -> tuple[str, ...]:
    """Return every module that a file imports, also in functions; `from a import b` as a.b."""
    return tuple(_imported(module, ast.walk(tree(module))))


def _imported(module: str, nodes: Iterator[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in FILES else str(node.module)


def own_imports(module: str) -> list[str]:
    return [name for name in imports(module) if name.split(".")[0] == PACKAGE]


def plugins() -> set[str]:
    """Return the modules of plugins: files, and folders with all that is in them."""
    roots = {f"{r.package}.{name}" for r in REGISTRIES for name in r.names()}
    return {m for m in FILES for root in roots if m == root or m.startswith(f"{root}.")}


def home(module: str) -> str:
    """Return the plugin that a module belongs to: ``sparsity_search.pruners.ria``."""
    depth = 4 if module.startswith(f"{UNITS.package}.") else 3
    return ".".join(module.split(".")[:depth])


def is_torch_free(module: str) -> bool:
    name = module.removeprefix(f"{PACKAGE}.")
    return any(name == free or name.startswith(f"{free}.") for free in NO_TORCH)


def calls(module: str) -> set[str]:
    return {ast.unparse(n.func) for n in ast.walk(tree(module)) if isinstance(n, ast.Call)}


def test_every_file_has_a_layer() -> None:
    assert {part(module) for module in FILES} - {""} == set(LAYER)


def test_imports_go_down() -> None:
    wrong = [
        f"{module} imports {name}"
        for module in LIBRARY
        for name in own_imports(module)
        if part(name) and LAYER[part(name)] > LAYER[part(module)]
    ]
    assert not wrong


def test_no_import_cycles() -> None:
    graph = {
        module: set(_imported(module, iter(tree(module).body))) & set(FILES) - {module, PACKAGE}
        for module in LIBRARY
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


def test_nothing_imports_a_concrete_plugin() -> None:
    known = plugins()
    wrong = [
        f"{module} imports {name}"
        for module in LIBRARY
        for name in own_imports(module)
        if name in known and home(name) != home(module)
    ]
    assert known
    assert not wrong


def test_private_modules_stay_in_their_folder() -> None:
    wrong = [
        f"{module} imports {name}"
        for module in FILES
        for name in own_imports(module)
        if any(part.startswith("_") and not part.startswith("__") for part in name.split("."))
        and name.rpartition(".")[0] != module.rpartition(".")[0]
    ]
    assert not wrong


def test_only_the_command_line_imports_itself() -> None:
    wrong = [
        f"{module} imports {name}"
        for module in LIBRARY
        for name in own_imports(module)
        if part(name) == "testing"
        or (part(name) == "cli" and part(module) not in ("cli", "__main__"))
    ]
    assert not wrong


def test_numbers_only() -> None:
    heavy = {"torch", "transformers", "datasets", "safetensors", "typer", "rich"}
    free = [module for module in LIBRARY if is_torch_free(module)]
    assert {f"{PACKAGE}.{name}" for name in ("study.study", "trials.store")} <= set(free)
    found = {m: heavy & {name.split(".")[0] for name in imports(m)} for m in free}
    assert not {module: names for module, names in found.items() if names}


def test_no_torch_even_indirectly() -> None:
    modules = [module for module in LIBRARY if is_torch_free(module)]
    heavy = "{'torch', 'transformers'} & set(sys.modules)"
    code = f"import sys, {', '.join(modules)}; print({heavy})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "set()\n", result.stderr


def test_the_library_is_silent() -> None:
    loud = {"print", "logging.basicConfig", "sys.stdout.write", "sys.stderr.write"}
    quiet = [module for module in LIBRARY if part(module) != "cli"]
    assert not [module for module in quiet if calls(module) & loud]
    terminal = {"rich", "typer"}
    assert not [m for m in quiet if terminal & {name.split(".")[0] for name in imports(m)}]


def test_no_global_random_state() -> None:
    seeds = {"torch.manual_seed", "np.random.seed", "random.seed", "torch.seed", "set_seed"}
    assert not [module for module in LIBRARY if calls(module) & seeds]


def test_files_are_short() -> None:
    lengths = {m: len(file.read_text("utf-8").splitlines()) for m, file in FILES.items()}
    assert not {module: n for module, n in lengths.items() if n > 400}


def test_a_plugin_is_one_frozen_dataclass() -> None:
    for registry in REGISTRIES:
        for name in registry.names():
            plugin = registry.get(name)
            assert plugin.__dataclass_params__.frozen, plugin
            assert plugin.__doc__, plugin
            for field in dataclasses.fields(plugin):
                defaults = {field.default, field.default_factory} - {dataclasses.MISSING}
                assert field.kw_only, f"{plugin}: {field.name}"
                assert defaults, f"{plugin}: {field.name} needs a default"
