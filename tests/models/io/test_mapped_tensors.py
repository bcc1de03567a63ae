from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparsity_search.errors import ModelError
from sparsity_search.models.io.mapped_tensors import MappedTensors

TENSORS = {
    "a": torch.randn(3, 5),
    "transposed": torch.randn(4, 2).T,
    "bfloat16": torch.randn(7).bfloat16(),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
}


def test_copies_are_equal_and_apart() -> None:
    mapped = MappedTensors(TENSORS.items())
    assert list(mapped) == list(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(mapped[name], tensor)
        assert mapped[name].dtype == tensor.dtype
        assert mapped[name].data_ptr() % 64 == 0
    mapped["a"].fill_(1)
    assert not torch.equal(TENSORS["a"], mapped["a"])


def test_what_is_written_survives_a_release() -> None:
    mapped = MappedTensors(TENSORS.items())
    mapped["a"][1] = 7
    mapped.release()
    assert (mapped["a"][1] == 7).all()
    assert torch.equal(mapped["a"][2], TENSORS["a"][2])


def test_nothing_at_all() -> None:
    assert len(MappedTensors([])) == 0


def test_tensors_outlive_the_mapping() -> None:
    tensor = MappedTensors(TENSORS.items())["a"]
    gc.collect()
    assert torch.equal(tensor, TENSORS["a"])


def test_the_file_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mapped = MappedTensors(TENSORS.items())
    assert not list(tmp_path.iterdir())
    assert len(mapped) == len(TENSORS)


def test_each_tensor_is_asked_for_when_the_one_before_is_written() -> None:
    alive: list[int] = []

    def stream() -> Iterator[tuple[str, Tensor]]:
        for index in range(3):
            tensor = torch.full((2,), float(index))
            yield str(index), tensor
            alive.append(index)

    assert [float(t[0]) for t in MappedTensors(stream()).values()] == [0, 1, 2]
    assert alive == [0, 1, 2]


def _resident(field: str = "RssFile") -> int:
    """Return this process's pages of files, and of shared memory, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kinds = ("RssFile", "RssShmem")
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(kinds))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux")
def test_release_takes_pages_out_of_memory() -> None:
    mapped = MappedTensors([("a", torch.ones(2**20))])
    before = _resident()
    mapped["a"].add_(1)
    assert _resident() - before > 3.5 * 2**20
    mapped.release()
    assert _resident() - before < 0.5 * 2**20
    assert float(mapped["a"].sum()) == 2**21


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def stream() -> Iterator[tuple[str, Tensor]]:
        refuse()
        yield "a", torch.zeros(1)

    with pytest.raises(ModelError, match=r"No space left on device.*TMPDIR"):
        MappedTensors(stream())
