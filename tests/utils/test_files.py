from __future__ import annotations

import json
import math
import os
import resource
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from sparsity_search.errors import ConfigError, MachineError, RunMismatchError
from sparsity_search.utils.files import (
    atomic_file,
    atomic_folder,
    check_fingerprint,
    check_writable,
    compute_digest,
    format_canonical_json,
    lock_folder,
    make_slug,
    write_json,
    write_text,
)

Atomic = Callable[[Path], AbstractContextManager[Path]]


def fill(path: Path, text: str) -> None:
    """Write ``text`` to a file, or to a file of a folder."""
    file = path / "inner" / "x.txt" if path.is_dir() else path
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)


def text_in(path: Path) -> str:
    return (path / "inner" / "x.txt" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("atomic", [atomic_file, atomic_folder])
def test_replaces_on_success(tmp_path: Path, atomic: Atomic) -> None:
    path = tmp_path / "new" / "x.json"
    for text in ("first", "second"):
        with atomic(path) as temporary:
            assert path.parent in temporary.parents  # so that it can be renamed
            fill(temporary, text)
            assert not path.exists() or text_in(path) == "first"
        assert text_in(path) == text
    assert os.listdir(path.parent) == ["x.json"]


@pytest.mark.parametrize("before", [None, "old"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("atomic", [atomic_file, atomic_folder])
def test_leaves_nothing_behind_on_failure(
    tmp_path: Path, atomic: Atomic, error: type[BaseException], before: str | None
) -> None:
    path = tmp_path / "x"
    if before:
        with atomic(path) as temporary:
            fill(temporary, before)

    def fails() -> None:
        with atomic(path) as temporary:
            fill(temporary, "half")
            raise error

    with pytest.raises(error):
        fails()
    assert os.listdir(tmp_path) == (["x"] if before else [])
    assert before is None or text_in(path) == before


@pytest.mark.parametrize("atomic", [atomic_file, atomic_folder])
def test_what_a_killed_process_leaves_is_removed(tmp_path: Path, atomic: Atomic) -> None:
    path, mine = tmp_path / "x.y", tmp_path / ".x.y.mine"
    mine.mkdir()
    child = os.fork()
    if child == 0:
        with atomic(path) as temporary:
            fill(temporary, "half")
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert len(os.listdir(tmp_path)) == 2
    with atomic(tmp_path / "x") as temporary:  # it has nothing to do with it
        fill(temporary, "other")
    assert len(os.listdir(tmp_path)) == 3
    with atomic(path) as temporary:
        fill(temporary, "whole")
    assert sorted(os.listdir(tmp_path)) == [mine.name, "x", "x.y"]
    assert text_in(path) == "whole"


def test_what_a_live_process_writes_stays(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "x") as first:
        first.write_text("first")
        write_text(tmp_path / "x", "second")
        assert first.read_text() == "first"
    assert (tmp_path / "x").read_text() == "first"


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "x") as first:
        fill(first, "first")
        with (
            pytest.raises(ConfigError, match="another process is writing"),
            atomic_folder(tmp_path / "x"),
        ):
            pass
    assert text_in(tmp_path / "x") == "first"
    assert os.listdir(tmp_path) == ["x"]


def test_folder_drops_old_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with atomic_folder(tmp_path / "x") as temporary:
            (temporary / name).touch()
    assert os.listdir(tmp_path / "x") == ["b"]


@pytest.mark.parametrize(("atomic", "mode"), [(atomic_file, 0o640), (atomic_folder, 0o750)])
def test_mode_is_that_of_ordinary_files(tmp_path: Path, atomic: Atomic, mode: int) -> None:
    umask = os.umask(0o027)
    try:
        with atomic(tmp_path / "x") as temporary:
            fill(temporary, "x")
        assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == mode
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(umask)


def test_write_json(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"b": 1, "a": [1.5, None]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"b": 1, "a": [1.5, None]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "y.json", math.nan)
    write_text(tmp_path / "z.txt", "é→")
    assert (tmp_path / "z.txt").read_text("utf-8") == "é→"
    assert sorted(os.listdir(tmp_path)) == ["x.json", "z.txt"]


def _save_tensors(path: Path) -> None:
    with atomic_file(path) as temporary:
        save_file({"x": np.zeros(10_000)}, temporary)


def _save_folder(path: Path) -> None:
    with atomic_folder(path) as temporary:
        save_file({"x": np.zeros(10_000)}, temporary / "x.safetensors")


@pytest.mark.parametrize(
    "write", [_save_tensors, _save_folder, lambda path: write_json(path, "x" * 10_000)]
)
def test_a_full_disk_is_one_line_with_the_path(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(MachineError, match=r"^cannot write .*x: File too large$"):
            write(tmp_path / "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not os.listdir(tmp_path)


def test_a_folder_that_cannot_be_made_is_one_line_with_the_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match=r"cannot write .*file/x: File exists"):
        write_text(tmp_path / "file" / "x", "x")
    with (
        pytest.raises(MachineError, match=r"cannot write .*file: File exists"),
        lock_folder(tmp_path / "file"),
    ):
        pass


def test_what_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file", tmp_path / "new" / "x"):
        check_writable(path)
    for path, reason in {
        tmp_path / "file" / "x": "Not a directory",
        Path("/proc/absent/x"): "cannot be written",
        tmp_path / ("x" * 999): "name too long",
        Path(os.devnull): "a device",
    }.items():
        with pytest.raises(ConfigError, match=reason):
            check_writable(path)
    assert os.listdir(tmp_path) == ["file"]


def test_canonical_json() -> None:
    assert format_canonical_json({"b": (1, 2), "a": "x"}) == '{"a":"x","b":[1,2]}'
    with pytest.raises(ValueError, match="JSON"):
        format_canonical_json([math.inf])


def test_digest() -> None:
    assert compute_digest([1, 2]) == compute_digest((1, 2)) != compute_digest([2, 1])
    assert len(compute_digest({})) == 16
    assert len({compute_digest(x) for x in (1, "1", [1], {"1": 1}, None)}) == 5


def test_labels_have_file_names_of_their_own() -> None:
    assert make_slug("a[x=[1,2]]") != make_slug("a[x=[1_2]]")
    assert len({make_slug(label) for label in ("a/b.json", "b.json", "b", "p.m:A", "p.m:B")}) == 5


def test_fingerprint() -> None:
    check_fingerprint({"a": 1, "b": None}, {"a": 1}, "x")
    with pytest.raises(RunMismatchError, match=r"the run was .* a \(1 → 2\), c \(absent → 3\)\."):
        check_fingerprint({"a": 1, "b": 0}, {"a": 2, "b": 0, "c": 3}, "the run")
