"""The examples of CONTRIBUTING.md, as an installed package that is not this one."""

from __future__ import annotations

import importlib
import os
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import Tensor

from sparsity_search.config.load import load_config
from sparsity_search.interfaces.allocator import Allocator
from sparsity_search.interfaces.evaluator import Evaluator
from sparsity_search.interfaces.format import ProfileDocument
from sparsity_search.interfaces.measure import Measure
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.interfaces.recovery import Recovery
from sparsity_search.interfaces.searcher import Searcher
from sparsity_search.interfaces.sensitivity import Sensitivity
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.pruning.sequential import prune_sequentially
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
)
from sparsity_search.spaces.files import SpaceFile, load_space
from sparsity_search.testing.allocator import AllocatorContract
from sparsity_search.testing.evaluator import EvaluatorContract, TextContract, draw_random_tokens
from sparsity_search.testing.measure import MeasureContract
from sparsity_search.testing.models import tiny_llama
from sparsity_search.testing.pruner import PrunerContract
from sparsity_search.testing.recovery import RecoveryContract
from sparsity_search.testing.searcher import SearcherContract
from sparsity_search.testing.sensitivity import SensitivityContract
from tests.helpers.installed import install
from tests.helpers.odd_model import odd_model

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text("utf-8")
BLOCKS = re.findall(r"(?ms)^```(\w+)\n(.*?)^```$", TEXT)
#: Source of each example by file name, which its first line states.
EXAMPLES = {
    source.partition("\n")[0].removeprefix("# "): source
    for language, source in BLOCKS
    if language in ("python", "yaml")
}
POINTS = tomllib.loads("\n".join(s for language, s in BLOCKS if language == "toml"))["project"][
    "entry-points"
]
PACKAGE = "my_plugins"
REGISTRIES = (
    *(ALLOCATORS, EVALUATORS, FORMATS, MEASURES, PRUNERS, RECOVERIES, SEARCHERS, SENSITIVITIES),
    UNITS,
)


@pytest.fixture(scope="module", autouse=True)
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on the path, where the examples are installed."""
    folder = tmp_path_factory.mktemp("site")
    (folder / PACKAGE).mkdir()
    (folder / PACKAGE / "__init__.py").touch()
    for name, source in EXAMPLES.items():
        (folder / name).write_text(source)
    install(folder, PACKAGE, {}, POINTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # for suites that start a process
        yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
        del sys.modules[name]


def test_every_kind_has_an_example() -> None:
    assert POINTS.keys() == {registry.group for registry in REGISTRIES}
    targets = [
        target.partition(":")[0] for points in POINTS.values() for target in points.values()
    ]
    files = {name for name in EXAMPLES if name.startswith(PACKAGE)}
    assert {f"{target.replace('.', '/')}.py" for target in targets} == files


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_short(name: str) -> None:
    lines = [line for line in EXAMPLES[name].splitlines()[1:] if line.strip()]
    assert len(lines) <= 25


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.kind)
def test_names_and_summaries(registry) -> None:  # type: ignore[no-untyped-def]
    (name,) = POINTS[registry.group]
    assert registry.summaries()[name]
    assert type(registry.create(name)).__module__.startswith(PACKAGE)


def test_the_test_file_is_one_of_a_contract(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(site)
    module = importlib.import_module("test_squared")
    assert issubclass(module.TestSquared, PrunerContract)


class TestPruner(PrunerContract):
    @pytest.fixture
    def pruner(self) -> Pruner:
        pruner: Pruner = PRUNERS.create("squared")
        return pruner


class TestAllocator(AllocatorContract):
    @pytest.fixture
    def allocator(self) -> Allocator:
        allocator: Allocator = ALLOCATORS.create("tilted")
        return allocator


class TestSearcher(SearcherContract):
    @pytest.fixture
    def searcher(self) -> Searcher:
        searcher: Searcher = SEARCHERS.create("cooling")
        return searcher


class TestEvaluator(EvaluatorContract, TextContract):
    @pytest.fixture
    def evaluator(self) -> Evaluator:
        evaluator: Evaluator = EVALUATORS.create("bits")
        return evaluator


class TestSensitivity(SensitivityContract):
    @pytest.fixture
    def sensitivity(self) -> Sensitivity:
        sensitivity: Sensitivity = SENSITIVITIES.create("energy")
        return sensitivity


class TestRecovery(RecoveryContract):
    @pytest.fixture
    def recovery(self) -> Recovery:
        recovery: Recovery = RECOVERIES.create("norms", steps=8)
        return recovery


class TestMeasure(MeasureContract):
    @pytest.fixture
    def measure(self) -> Measure:
        measure: Measure = MEASURES.create("bytes")
        return measure


def test_tilted_prunes_late_blocks_more(tiny_subject: PrunableModel, tiny_tokens: Tensor) -> None:
    bounds = Bounds.of(tiny_subject.layout)
    allocator = ALLOCATORS.create("tilted", slope=0.3)
    profile = allocator.allocate(tiny_subject, tiny_tokens, Budget(0.5), bounds)
    means = list(profile.grouped("block").values())
    assert means == sorted(means)
    assert means[0] < 0.45 < 0.55 < means[-1]


def test_format(tiny_subject: PrunableModel) -> None:
    profile, tsv = Budget(0.5).uniform(tiny_subject.layout), FORMATS.create("tsv")
    text = tsv.write(ProfileDocument(profile))
    assert text.count("\n") == len(profile.layout)
    assert tsv.read(text, profile.layout).profile == profile


def test_unit_kind() -> None:
    subject = PrunableModel(tiny_llama(), units="channels")
    assert {unit.role for unit in subject.layout} == {"feed_forward"}
    profile = Budget(0.5).uniform(subject.layout)
    prune_sequentially(subject, profile, PRUNERS.create("wanda_sp"), draw_random_tokens(3, 16))
    assert subject.zeros().removed == profile.removed


def test_roles(site: Path) -> None:
    config = load_config(site / "odd.yaml", {"model.name": "smollm2"})
    subject = PrunableModel(odd_model(), roles=config.model.roles)
    roles = {unit.role for unit in subject.layout}
    assert roles == {"q", "k", "v", "o", "gate", "up", "down"}


def test_search_space(site: Path, tiny_subject: PrunableModel) -> None:
    file = load_space(str(site / "late.yaml"))
    assert isinstance(file, SpaceFile)
    space = file.build(tiny_subject.layout, Budget(0.5), {})
    assert space.n_genes == len({(unit.block, unit.role) for unit in tiny_subject.layout})
