from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import sparsity_search
from sparsity_search.errors import MissingExtraError, SparsitySearchError
from sparsity_search.registry import TRACKERS
from sparsity_search.utils.extras import require

PACKAGE = Path(sparsity_search.__file__).parent
EXTRAS = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]
OPTIONAL = {"accelerate", "datasets", "gguf", "jinja2", "lm_eval", "matplotlib", "mkdocs"} | {
    *("mlflow", "pandas", "playwright", "plotly", "pyarrow", "pytest", "sklearn"),
    *("tensorboard", "threadpoolctl", "wandb", "xgboost"),
}
#: Modules that are only imported after a check that their extra is installed.
CHECKED = {"report/charts.py", "report/plots.py"} | {
    f"testing/{file.name}" for file in (PACKAGE / "testing").glob("*")
}


def trees() -> Iterator[tuple[str, ast.Module]]:
    for file in sorted(PACKAGE.rglob("*.py")):
        yield file.relative_to(PACKAGE).as_posix(), ast.parse(file.read_text("utf-8"))


def test_what_is_installed_passes() -> None:
    require("a test", "testing", "pytest", "json")


def test_what_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xgboost", None)
    with pytest.raises(MissingExtraError) as caught:
        require("a model", "predictors", "json", "xgboost")
    assert "xgboost" in str(caught.value)
    assert 'pip install "sparsity-search[predictors]"' in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, SparsitySearchError)


def test_no_module_needs_an_extra_to_be_imported() -> None:
    wrong = [
        f"{name}: {module}"
        for name, tree in trees()
        if name not in CHECKED
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for module in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [str(node.module)]
        )
        if module.split(".")[0] in OPTIONAL
    ]
    assert not wrong


def test_each_check_names_the_extra_that_installs_the_modules() -> None:
    calls = [
        node.args
        for _, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "require"
    ]
    assert len(calls) >= 6
    homes = packages_distributions()
    for _, extra, *modules in calls:
        packages = {line.split(">")[0].lower() for line in EXTRAS[ast.literal_eval(extra)]}
        for module in modules:
            if isinstance(module, ast.Constant):
                assert {home.lower() for home in homes[str(module.value)]} & packages, module.value


def test_all_is_every_extra_of_users() -> None:
    kinds = {"all", "browser", "dev", "docs", "notebooks", "testing", *TRACKERS.names()}
    assert EXTRAS["all"] == [f"sparsity-search[{','.join(sorted(EXTRAS.keys() - kinds))}]"]
