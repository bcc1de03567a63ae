from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparsity_search.errors import RunMismatchError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.registry import PRUNERS
from sparsity_search.supernet.build import SupernetDesign, build_supernet
from sparsity_search.supernet.disk import SupernetFolder
from sparsity_search.supernet.switch import Supernet
from sparsity_search.testing.evaluator import copy_weights
from tests.helpers.names import OF_WEIGHTS

from .conftest import Counting

PlanOf = Callable[..., SupernetDesign]
FINGERPRINT = {"pruner": "wanda", "seed": 0}
N_UNITS = 7  # of one block


def folder_at(path: Path) -> SupernetFolder:
    return SupernetFolder(path, FINGERPRINT)


def assert_same(one: Supernet, other: Supernet, profiles: list[SparsityProfile]) -> None:
    for profile in profiles:
        found = []
        for supernet in (one, other):
            with supernet.resident() as switch:
                switch.to(profile)
                found.append(copy_weights(supernet.subject.model))
        assert all(torch.equal(weight, found[1][name]) for name, weight in found[0].items())
    assert one.notes == other.notes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "supernet"


@pytest.fixture
def built(
    tiny_subject: PrunableModel, tiny_tokens: Tensor, plan_of: PlanOf, path: Path
) -> Supernet:
    return build_supernet(tiny_subject, tiny_tokens, plan_of(), folder_at(path))


@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_disk_is_memory(
    tiny_subject: PrunableModel,
    tiny_tokens: Tensor,
    plan_of: PlanOf,
    path: Path,
    profiles: list[SparsityProfile],
    name: str,
) -> None:
    plan = plan_of(PRUNERS.create(name))
    in_memory = build_supernet(tiny_subject, tiny_tokens, plan)
    made = build_supernet(tiny_subject, tiny_tokens, plan, folder_at(path))
    read = build_supernet(tiny_subject, tiny_tokens, plan, folder_at(path))
    assert_same(in_memory, made, profiles)
    assert_same(in_memory, read, profiles)


@pytest.mark.parametrize("propagate", ["centre", "dense"])
@pytest.mark.parametrize("stop", [0, 1, 2])
def test_resumes_by_block(
    tiny_subject: PrunableModel,
    tiny_tokens: Tensor,
    plan_of: PlanOf,
    path: Path,
    profiles: list[SparsityProfile],
    stop: int,
    propagate: str,
) -> None:
    def interrupt(block: int) -> None:
        if block == stop:
            raise KeyboardInterrupt

    pruner, told = Counting(), []
    plan = plan_of(pruner, propagate=propagate)
    with pytest.raises(KeyboardInterrupt):
        build_supernet(tiny_subject, tiny_tokens, plan, folder_at(path), interrupt)
    assert len(pruner.calls) == N_UNITS * (stop + 1)
    assert [folder_at(path).has(block) for block in range(3)] == [b <= stop for b in range(3)]
    resumed = build_supernet(tiny_subject, tiny_tokens, plan, folder_at(path), told.append)
    assert len(pruner.calls) == N_UNITS * 3
    assert folder_at(path).complete(3)
    assert_same(build_supernet(tiny_subject, tiny_tokens, plan), resumed, profiles)


def _truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def _empty(file: Path) -> None:
    os.truncate(file, 0)


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [_truncate, _empty, _flip, Path.unlink])
@pytest.mark.parametrize("block", [0, 2])
def test_a_damaged_block_is_rebuilt(
    tiny_subject: PrunableModel,
    tiny_tokens: Tensor,
    plan_of: PlanOf,
    built: Supernet,
    path: Path,
    profiles: list[SparsityProfile],
    block: int,
    damage: Callable[[Path], None],
) -> None:
    expected = build_supernet(tiny_subject, tiny_tokens, plan_of())
    files = sorted(path.glob("block-*"))
    before = [file.read_bytes() for file in files]
    damage(files[block])
    pruner = Counting()
    assert not folder_at(path).has(block)
    rebuilt = build_supernet(tiny_subject, tiny_tokens, plan_of(pruner), folder_at(path))
    assert len(pruner.calls) == N_UNITS
    assert [file.read_bytes() for file in files] == before
    assert_same(expected, rebuilt, profiles)


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"format": 99}'])
def test_without_a_legible_manifest_all_is_rebuilt(
    tiny_subject: PrunableModel,
    tiny_tokens: Tensor,
    plan_of: PlanOf,
    built: Supernet,
    path: Path,
    content: str | None,
) -> None:
    (path / "manifest.json").unlink()
    if content is not None:
        (path / "manifest.json").write_text(content)
    pruner = Counting()
    build_supernet(tiny_subject, tiny_tokens, plan_of(pruner), folder_at(path))
    assert len(pruner.calls) == 3 * N_UNITS


@pytest.mark.usefixtures("built")
def test_another_fingerprint_is_refused(path: Path) -> None:
    with pytest.raises(RunMismatchError, match=r"the supernet in .* was .*: seed \(0 → 1\)\."):
        SupernetFolder(path, {**FINGERPRINT, "seed": 1})


@pytest.mark.usefixtures("built")
def test_files(path: Path) -> None:
    names = [f"block-000{i}.safetensors" for i in range(3)]
    assert sorted(os.listdir(path)) == [*names, "manifest.json"]


def test_an_unused_folder_is_not_made(path: Path) -> None:
    folder = folder_at(path)
    assert not folder.has(0)
    assert not folder.complete(1)
    assert not path.exists()


def test_notes_are_kept(tiny_subject: PrunableModel, plan_of: PlanOf, path: Path) -> None:
    # one short sequence: fewer tokens than inputs, so SparseGPT without damping has to raise it
    plan = plan_of(PRUNERS.create("sparsegpt", damping=0.0))
    tokens = torch.arange(8).view(1, 8)
    notes = build_supernet(tiny_subject, tokens, plan, folder_at(path)).notes
    assert notes
    assert build_supernet(tiny_subject, tokens, plan, folder_at(path)).notes == notes
