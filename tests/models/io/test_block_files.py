from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from sparsity_search.models.io.block_files import BlockFiles

FACTS = {"seed": 0, "levels": (1, 2)}
TENSORS = {"a/b": torch.arange(6).view(2, 3), "c": torch.tensor(2.5, dtype=torch.float64)}


@pytest.fixture
def files(tmp_path: Path) -> BlockFiles:
    return BlockFiles(tmp_path / "made" / "here", 1, FACTS)


@pytest.fixture
def folder(files: BlockFiles, tmp_path: Path) -> Path:
    files.save(0, TENSORS, {"x": "y"})
    files.save(2, {}, {"of": "nothing"})
    return tmp_path / "made" / "here"


@pytest.mark.usefixtures("folder")
def test_what_is_saved_is_loaded(files: BlockFiles) -> None:
    assert [files.has(block) for block in range(4)] == [True, False, True, False]
    tensors, metadata = files.load(0)
    assert metadata == {"x": "y"}
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())
    assert files.load(2)[0] == {}


def test_others_add_to_the_same_folder(files: BlockFiles, folder: Path) -> None:
    BlockFiles(folder, 1, FACTS).save(1, TENSORS, {})
    files.save(3, TENSORS, {})
    assert [files.has(block) for block in range(4)] == [True] * 4


@pytest.mark.parametrize(
    ("version", "facts"), [(2, FACTS), (1, {**FACTS, "seed": 1}), (1, {"seed": 0})]
)
def test_files_of_something_else_are_absent(
    files: BlockFiles, folder: Path, version: int, facts: dict[str, object]
) -> None:
    other = BlockFiles(folder, version, facts)
    assert not other.has(0)
    other.save(1, TENSORS, {})
    assert [other.has(block) for block in range(3)] == [False, True, False]
    assert not any(files.has(block) for block in range(3))


def test_the_fingerprint_that_is_stored(files: BlockFiles, folder: Path) -> None:
    assert BlockFiles(folder, 1, {}).stored() == {"seed": 0, "levels": [1, 2]}
    assert BlockFiles(folder, 2, FACTS).stored() is None
    assert BlockFiles(folder / "absent", 1, FACTS).stored() is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1}', '"text"', "null"])
def test_a_corrupt_manifest(files: BlockFiles, folder: Path, content: str) -> None:
    (folder / "manifest.json").write_text(content)
    assert not files.has(0)
    files.save(0, TENSORS, {})
    assert files.has(0)


def test_a_corrupt_file(files: BlockFiles, folder: Path) -> None:
    file = folder / "block-0000.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    assert not files.has(0)
    assert files.has(2)


def test_a_block_that_cannot_be_written_leaves_nothing(files: BlockFiles, folder: Path) -> None:
    before = sorted(os.listdir(folder)), json.loads((folder / "manifest.json").read_text())
    shared = torch.zeros(3)
    with pytest.raises(RuntimeError, match="share memory"):
        files.save(1, {"one": shared, "other": shared}, {})
    assert before == (
        sorted(os.listdir(folder)),
        json.loads((folder / "manifest.json").read_text()),
    )
