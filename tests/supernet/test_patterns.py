"""A supernet whose units choose among patterns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparsity_search.errors import ConfigError, ProfileError, UnknownNameError
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.walk import walk
from sparsity_search.profiles.budget import Budget
from sparsity_search.profiles.profile import SparsityProfile, count_pattern_zeros, from_counts
from sparsity_search.pruners.magnitude import MagnitudePruner
from sparsity_search.pruners.sparsegpt import SparseGPTPruner
from sparsity_search.pruners.wanda import WandaPruner
from sparsity_search.pruning.patterns import with_pattern
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.spaces.files import SpaceFile
from sparsity_search.spaces.levels import SearchSpace
from sparsity_search.supernet.build import SupernetDesign, build_supernet
from sparsity_search.supernet.disk import SupernetFolder
from sparsity_search.supernet.switch import Supernet, get_variants_name
from sparsity_search.testing.evaluator import copy_weights
from sparsity_search.testing.models import tiny_llama
from sparsity_search.utils.random import create_generator, derive_seed

PRUNERS = [WandaPruner(), SparseGPTPruner(mask=MagnitudePruner())]
SAVINGS = {"2:4": 0.5, "4:8": 0.25}


@pytest.fixture
def space(tiny_subject: PrunableModel) -> SearchSpace:
    file = SpaceFile(version=1, description="x", gene=["name"], options=SAVINGS, reach=2)
    return file.build(tiny_subject.layout, Budget(0.25), {})


@pytest.fixture
def mixed(space: SearchSpace) -> list[SparsityProfile]:
    found = [space.profile(space.sample(create_generator(i, "mixed"), 2.0)) for i in range(3)]
    assert all(set(profile.patterns) == {"", "2:4", "4:8"} for profile in found)
    return [space.base, *found]


def plan_of(space: SearchSpace, pruner: Pruner, propagate: str = "centre") -> SupernetDesign:
    return SupernetDesign(
        pruner=pruner,
        tables=space.tables(),
        patterns=space.patterns(),
        centre=space.base,
        propagate=propagate,  # type: ignore[arg-type]
        seed=5,
    )


def groups(weight: Tensor, size: int) -> set[int]:
    """Return how many weights groups of consecutive inputs keep."""
    return set((weight != 0).view(len(weight), -1, size).sum(-1).flatten().tolist())


def assert_grouped(subject: PrunableModel, profile: SparsityProfile) -> None:
    for unit, pattern in zip(profile.layout, profile.patterns, strict=True):
        weight = subject.views[unit.name].read()
        expected = {"2:4": (4, {2}), "4:8": (8, {4}), "": (8, {8})}[pattern]
        assert groups(weight, expected[0]) == expected[1]


@pytest.mark.parametrize("pruner", PRUNERS, ids=["wanda", "sparsegpt"])
def test_switching_is_direct_pruning(
    tiny_subject: PrunableModel, tiny_tokens: Tensor, mixed: list[SparsityProfile],
    space: SearchSpace, pruner: Pruner,
) -> None:  # fmt: skip
    supernet = build_supernet(tiny_subject, tiny_tokens, plan_of(space, pruner, "dense"))
    visits = list(walk(tiny_subject, tiny_tokens, pruner.requires, rewritten=False))
    known = {name: found for visit in visits for name, found in visit.evidence.items()}
    dense = {name: view.read().clone() for name, view in tiny_subject.views.items()}
    with supernet.resident() as switch:
        for profile in [*mixed, mixed[1]]:
            switch.to(profile)
            tiny_subject.verify(profile)
            assert_grouped(tiny_subject, profile)
            for unit, (count, pattern) in zip(profile.layout, profile.states, strict=True):
                expected = dense[unit.name]
                if pattern:
                    seed = derive_seed(5, "ties", unit.name)
                    expected = with_pattern(pruner, pattern).prune(
                        expected, known[unit.name], [count], seed=seed
                    ).at(expected, count)  # fmt: skip
                assert torch.equal(tiny_subject.views[unit.name].read(), expected)


def test_a_unit_whose_pattern_alone_changes_is_written(
    tiny_subject: PrunableModel, tiny_tokens: Tensor, space: SearchSpace
) -> None:
    supernet = build_supernet(tiny_subject, tiny_tokens, plan_of(space, WandaPruner()))
    layout, name = space.layout, space.layout[3].name
    profiles = []
    for pattern in ("2:4", "4:8", "2:4"):
        patterns = ["4:8"] * len(layout)
        patterns[3] = pattern
        removed = [count_pattern_zeros(unit, p) for unit, p in zip(layout, patterns, strict=True)]
        profiles.append(from_counts(layout, removed, patterns))
    found = []
    with supernet.resident() as switch:
        for profile in profiles:
            switch.to(profile)
            found.append({n: view.read().clone() for n, view in tiny_subject.views.items()})
    changed = {n for n in found[0] if not torch.equal(found[0][n], found[1][n])}
    assert changed == {name}
    assert groups(found[0][name], 4) == {2}
    assert groups(found[1][name], 4) > {2}
    assert all(torch.equal(found[0][n], found[2][n]) for n in found[0])


def test_the_centre_is_sequential_pruning(
    tiny_subject: PrunableModel, tiny_tokens: Tensor, space: SearchSpace
) -> None:
    supernet = build_supernet(tiny_subject, tiny_tokens, plan_of(space, WandaPruner()))
    with supernet.resident() as switch:
        switch.to(space.base)
        expected = copy_weights(tiny_subject.model)
    prune_sequentially(tiny_subject, space.base, WandaPruner(), tiny_tokens, seed=5)
    found = copy_weights(tiny_subject.model)
    assert all(torch.equal(weight, expected[name]) for name, weight in found.items())


@pytest.mark.parametrize("pruner", PRUNERS, ids=["wanda", "sparsegpt"])
def test_disk_is_memory(
    tiny_subject: PrunableModel, tiny_tokens: Tensor, mixed: list[SparsityProfile],
    space: SearchSpace, pruner: Pruner, tmp_path: Path,
) -> None:  # fmt: skip
    plan = plan_of(space, pruner)

    def states(supernet: Supernet) -> list[dict[str, Tensor]]:
        found = []
        with supernet.resident() as switch:
            for profile in mixed:
                switch.to(profile)
                found.append(copy_weights(tiny_subject.model))
        return found

    memory = states(build_supernet(tiny_subject, tiny_tokens, plan))
    for _ in range(2):  # made, and read
        disk = states(
            build_supernet(tiny_subject, tiny_tokens, plan, SupernetFolder(tmp_path, {}))
        )
        for one, other in zip(memory, disk, strict=True):
            assert all(torch.equal(weight, other[name]) for name, weight in one.items())


def test_a_block_without_choice_is_kept_on_disk(tiny_tokens: Tensor, tmp_path: Path) -> None:
    subject = PrunableModel(tiny_llama(layers=2))
    file = SpaceFile(version=1, description="x", gene=["name"], options=SAVINGS, reach=2)
    space = file.build(subject.layout, Budget(0.25), {"q": (0, 0)})
    for _ in range(2):
        supernet = build_supernet(
            subject, tiny_tokens, plan_of(space, SparseGPTPruner()), SupernetFolder(tmp_path, {})
        )
    with supernet.resident() as switch:
        switch.to(space.base)
        subject.verify(space.base)
        assert not any("q_proj[" in name for name in supernet.variants)


def test_a_dense_unit_takes_no_space(
    tiny_subject: PrunableModel, tiny_tokens: Tensor, space: SearchSpace
) -> None:
    supernet = build_supernet(tiny_subject, tiny_tokens, plan_of(space, SparseGPTPruner()))
    for unit in space.layout:
        assert supernet.variants[unit.name].tensors() == {}
        for pattern in SAVINGS:
            made = supernet.variants[get_variants_name(unit.name, pattern)].tensors()
            assert made["values"].numel() == unit.count // 2
    assert len(supernet.variants) == 3 * len(space.layout)


def test_profiles_that_it_does_not_hold(
    tiny_subject: PrunableModel, tiny_tokens: Tensor, space: SearchSpace
) -> None:
    supernet = build_supernet(tiny_subject, tiny_tokens, plan_of(space, WandaPruner()))
    half = [unit.count // 2 for unit in space.layout]
    with supernet.resident() as switch:
        with pytest.raises(
            UnknownNameError, match=r"no variant of .*q_proj has the pattern '1:2'"
        ):
            switch.to(from_counts(space.layout, half, ["1:2"] * len(half)))
        with pytest.raises(UnknownNameError, match="no variant has 512 zeros"):
            switch.to(from_counts(space.layout, half))


@pytest.mark.parametrize("pruner", PRUNERS, ids=["wanda", "sparsegpt"])
def test_sequential_pruning_has_the_patterns(
    tiny_subject: PrunableModel, tiny_tokens: Tensor, mixed: list[SparsityProfile], pruner: Pruner
) -> None:
    prune_sequentially(tiny_subject, mixed[1], pruner, tiny_tokens)
    assert_grouped(tiny_subject, mixed[1])


@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_as_many_zeros_in_other_groups_are_found_out(
    tiny_subject: PrunableModel, tiny_tokens: Tensor, mixed: list[SparsityProfile], pattern: str
) -> None:
    profile = mixed[1]
    prune_sequentially(tiny_subject, profile, WandaPruner(), tiny_tokens)
    name = profile.layout[profile.patterns.index(pattern)].name
    weight = tiny_subject.views[name].read().clone()
    row = weight[-1]
    row[(row[:8] == 0).nonzero()[0]] = 1.0
    row[(row[8:] != 0).nonzero()[0] + 8] = 0.0
    tiny_subject.views[name].write(weight)
    assert tiny_subject.zeros().removed == profile.removed
    with pytest.raises(ProfileError, match=f"{name} does not have .* {pattern}"):
        tiny_subject.verify(profile)


def test_zeros_of_the_dense_model(tiny_tokens: Tensor) -> None:
    """Groups that have more zeros than are removed: the kept ones are the least number."""
    model = tiny_llama()
    model.model.layers[0].mlp.up_proj.weight.data[:5] = 0
    subject = PrunableModel(model)
    file = SpaceFile(version=1, description="x", gene=["name"], options=SAVINGS, reach=2)
    space = file.build(subject.layout, Budget(0.3), {})
    position = space.layout.position("model.layers.0.mlp.up_proj")
    profiles = [space.profile(space.sample(create_generator(i, "z"), 2.0)) for i in range(24)]
    found = {profile.states[position] for profile in profiles}
    assert {pattern for _, pattern in found} == {"", "2:4", "4:8"}
    supernet = build_supernet(subject, tiny_tokens, plan_of(space, WandaPruner()))
    with supernet.resident() as switch:
        for profile in profiles:
            switch.to(profile)
            subject.verify(profile)


def test_a_pruner_without_patterns(
    tiny_subject: PrunableModel, tiny_tokens: Tensor, space: SearchSpace
) -> None:
    with pytest.raises(ConfigError, match="Plain has no patterns"):
        build_supernet(tiny_subject, tiny_tokens, plan_of(space, Plain()))


class Plain(Pruner):
    """A pruner that cannot."""

    def prune(self, *args: object, **kwargs: object) -> object:  # type: ignore[override]
        raise AssertionError("never called")
