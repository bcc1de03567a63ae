from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsity_search.config.load import load_config
from sparsity_search.config.schema import RunConfig
from sparsity_search.engine.plugins import Plugins, build_allocator, label_starts
from sparsity_search.errors import SparsitySearchError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.patterns import Pattern
from sparsity_search.pruning.patterns import pattern_of
from sparsity_search.registry import ALLOCATORS, PRUNERS, describe
from sparsity_search.testing.models import tiny_llama

NEEDED = {"model.name": "tiny"}


def config(*overrides: str) -> RunConfig:
    return load_config(None, {"model.name": "tiny"}, overrides)


def test_an_allocator_has_pruner_and_seed_of_the_run() -> None:
    found = build_allocator(config("pruner.name=sparsegpt", "pruner.damping=0.1"), "essential")
    assert found.pruner == PRUNERS.create("sparsegpt", damping=0.1)
    found = build_allocator(config("pruner.name=ria+sparsegpt"), "essential")
    assert found.pruner == PRUNERS.create("sparsegpt", mask="ria")
    assert build_allocator(config("study.seed=4"), "knapsack").seed == 4


def test_a_nested_allocator_has_them_too_and_its_own_section() -> None:
    nested = "allocators.gauss_newton={start: knapsack}"
    section = "allocators.knapsack={levels: [0.5, 0.9]}"
    start = build_allocator(
        config("pruner=sparsegpt", "study.seed=3", nested, section), "gauss_newton"
    ).start
    assert start.pruner == PRUNERS.create("sparsegpt")
    assert (start.seed, start.levels) == (3, (0.5, 0.9))


def test_unless_they_are_set() -> None:
    overrides = ("pruner.name=ria", "allocators.knapsack={pruner: magnitude, seed: 2}")
    found = build_allocator(config(*overrides, "study.seed=4"), "knapsack")
    assert found.pruner == PRUNERS.create("magnitude")
    assert found.seed == 2
    assert build_allocator(config("pruner.name=ria"), "owl") == ALLOCATORS.create("owl")


def test_initial_profiles_from_files(tmp_path: Path) -> None:
    subject = PrunableModel(tiny_llama())
    shape = np.linspace(0.2, 0.8, len(subject.layout))
    profile = Budget(0.5).project(subject.layout, shape)
    file = tmp_path / "before" / "profile.json"
    file.parent.mkdir()
    file.write_text(json.dumps(profile.to_json()))
    found = load_config(None, {**NEEDED, "initial": ["owl", str(file)]})
    initial = Plugins.of(found).initial
    assert list(initial) == ["owl", "before-profile"]
    budget, bounds = Budget(0.6), Bounds.of(subject.layout)
    moved = initial["before-profile"].allocate(subject, torch.zeros(1, 8), budget, bounds)
    assert moved == budget.project(subject.layout, profile.sparsities)
    assert describe(initial["before-profile"]) == f"GivenProfile({profile.digest})"


def test_no_start_replaces_another(tmp_path: Path) -> None:
    """Files of one name in folders of one name are two starts."""
    layout = PrunableModel(tiny_llama()).layout
    names, digests = [], []
    for sparsity in (0.4, 0.6):
        file = tmp_path / str(sparsity) / "a" / "profile.json"
        file.parent.mkdir(parents=True)
        profile = Budget(sparsity).uniform(layout)
        file.write_text(json.dumps(profile.to_json()))
        names.append(str(file))
        digests.append(f"GivenProfile({profile.digest})")
    initial = Plugins.of(load_config(None, {**NEEDED, "initial": [*names, names[0]]})).initial
    assert list(initial) == ["a-profile", "a-profile-2"]
    assert list(map(describe, initial.values())) == digests


def test_no_file_has_the_label_of_a_row_or_an_allocator() -> None:
    files = ["dense.json", "uniform.json", "searched.json", "owl.json", "mine.json", "a/b.json"]
    labels = ["dense-2", "uniform-2", "searched-2", "owl-2", "mine", "a-b"]
    assert label_starts(files) == dict(zip(labels, files, strict=True))
    assert label_starts(["m:A.json", "m:A", "a/b.json", "a-b.json", "a-b-2.json"]) == {
        **{"m:A-2": "m:A.json", "m:A": "m:A", "a-b": "a/b.json"},
        **{"a-b-2": "a-b.json", "a-b-2-2": "a-b-2.json"},
    }


@pytest.mark.parametrize(
    ("content", "said"), [(None, r"cannot read .*profile\.json"), ("{}", "profile")]
)
def test_initial_files_that_hold_no_profile(
    tmp_path: Path, content: str | None, said: str
) -> None:
    file = tmp_path / "profile.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SparsitySearchError, match=said):
        Plugins.of(load_config(None, {**NEEDED, "initial": [str(file)]}))


def test_the_last_pruner_keeps_the_pattern() -> None:
    options = {**NEEDED, "pruner.pattern": "2:4", "finalise.name": "wanda+refit"}
    final = Plugins.of(load_config(None, options)).final
    assert pattern_of(final) == Pattern.parse("2:4")
    own = {**NEEDED, "pruner.name": "sparsegpt", "finalise.name": "alps"}
    assert Plugins.of(load_config(None, own)).final == PRUNERS.create("alps")
    assert Plugins.of(load_config(None, NEEDED)).final == PRUNERS.create("wanda")


def test_initial_plugins_from_outside_have_their_whole_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outside_starts.py").write_text(
        "from sparsity_search.allocators.uniform import UniformAllocator as One\n"
        "from sparsity_search.allocators.owl import OWLAllocator as Two\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    names = ["outside_starts:One", "outside_starts:Two"]
    assert list(Plugins.of(load_config(None, {**NEEDED, "initial": names})).initial) == names
    dotted = ["sparsity_search.allocators.uniform:UniformAllocator"]
    assert list(Plugins.of(load_config(None, {**NEEDED, "initial": dotted})).initial) == dotted
