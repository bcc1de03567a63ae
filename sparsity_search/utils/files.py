"""Files that are whole or absent: canonical JSON, digests, and writes that end in a rename.

A disk that is full or a folder that is read-only is a `MachineError`, which names the path.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sparsity_search.errors import (
    ConfigError,
    MachineError,
    RunMismatchError,
    find_machine_fault,
)


def format_canonical_json(value: Any) -> str:
    """Return the one JSON text of ``value``: sorted keys, no spaces, finite numbers only."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def compute_digest(value: Any) -> str:
    """Return 16 hexadecimal digits that identify a JSON-like value.

    >>> compute_digest({"a": 1, "b": 2}) == compute_digest({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(format_canonical_json(value).encode()).hexdigest()[:16]


def compute_file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's contents, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_slug(label: str) -> str:
    """Return a label as a file name; other characters are replaced, and a digest keeps it unique.

    >>> make_slug("owl[m=7;spread=0.2]"), make_slug("wanda+refit")
    ('owl_m=7_spread=0.2', 'wanda+refit')
    """
    plain = label.removesuffix("]").replace("[", "_").replace(";", "_")
    safe = re.sub(r"[^\w.+=-]", "_", plain)
    return safe if safe == plain else f"{safe}-{compute_digest(label)[:6]}"


def check_fingerprint(stored: Mapping[str, Any], now: Mapping[str, Any], what: str) -> None:
    """Check that a stored artefact was made with the present configuration.

    Raises:
        RunMismatchError: It was not; the message names the keys that differ.
    """
    now = json.loads(format_canonical_json(dict(now)))  # as it was stored: tuples are lists
    keys = [key for key in {**stored, **now} if stored.get(key) != now.get(key)]
    if keys:
        differing = ", ".join(
            f"{key} ({stored.get(key, 'absent')} → {now.get(key, 'absent')})" for key in keys
        )
        raise RunMismatchError(
            f"{what} was made with another configuration; these differ: {differing}. "
            "Use another --out, or the same settings, model and versions."
        )


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write ``text``, atomically: a reader sees the old file or the whole new one."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content``, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def told_of_machine(path: Path) -> Iterator[None]:
    """Name a file or folder that cannot be written: a full disk, read-only, without memory.

    Raises:
        MachineError: The machine failed; names ``path`` and the reason.
    """
    try:
        yield
    except Exception as error:
        reason = None if isinstance(error, MachineError) else find_machine_fault(error)
        if reason is None:
            raise
        raise MachineError(f"cannot write {path}: {reason}") from error


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path near ``path``, which it replaces on success.

    What killed processes have left of the same file is removed.
    """
    with told_of_machine(path), _reserve(path) as folder:
        _sweep(path, but=folder)
        temporary = folder / path.name
        yield temporary
        _sync(temporary)
        os.chmod(temporary, 0o666 & ~_get_umask())
        os.replace(temporary, path)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder next to ``path``, which it replaces on success.

    What killed processes have left of the same folder is removed.

    Raises:
        ConfigError: Another process is writing the same folder.
    """
    with told_of_machine(path), _reserve(path) as temporary:
        if _sweep(path, but=temporary):
            raise ConfigError(f"another process is writing {path}")
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync(file)
        os.chmod(temporary, 0o777 & ~_get_umask())
        with _reserve(path) as old:  # removed last: it may take a while
            if path.exists():
                os.replace(path, old)
            os.replace(temporary, path)


@contextmanager
def _reserve(path: Path) -> Iterator[Path]:
    """Yield a new folder next to ``path``, locked while this process lives and then removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = None
    while handle is None:
        folder = Path(tempfile.mkdtemp(prefix=_begin_name(path), dir=path.parent))
        handle = _lock(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _lock(folder: Path) -> int | None:
    """Lock a new folder and return its descriptor; None if another process has swept it."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with suppress(OSError):  # a file system without such locks: nothing is swept there
        fcntl.flock(handle, fcntl.LOCK_EX)
    if folder.exists():
        return handle
    os.close(handle)
    return None


def _sweep(path: Path, but: Path) -> bool:
    """Remove what killed processes have left of ``path``; return whether a live one writes it."""
    alive = False
    for folder in path.parent.glob(f"{glob.escape(_begin_name(path))}*"):
        if folder != but:
            alive |= not _remove_unlocked(folder)
    return alive


def _remove_unlocked(folder: Path) -> bool:
    """Remove a folder unless a process holds its lock, and return whether none does."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # removed meanwhile, or of another user
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        return False
    except OSError:  # a file system without such locks: its owner may live
        pass
    finally:
        os.close(handle)
    return True


def _begin_name(path: Path) -> str:
    """Return how the names of temporary folders for ``path`` begin."""
    return f".{path.name}.unfinished-"


@contextmanager
def lock_folder(path: Path) -> Iterator[None]:
    """Own a folder; it is made if need be.

    Raises:
        ConfigError: Another process works there.
        MachineError: The folder cannot be made or locked.
    """
    lock = FileLock(path / ".lock")
    with told_of_machine(path):
        path.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ConfigError(f"another process works in {path}") from error
    try:
        yield
    finally:
        lock.release()


def check_empty(path: Path) -> None:
    """Check that a folder that a command is going to write is new or empty.

    Raises:
        ConfigError: It is a file, or has something in it.
    """
    if path.exists() and (path.is_file() or any(path.iterdir())):
        raise ConfigError(f"--out {path} exists and is not empty; name another folder")


def check_writable(path: Path) -> None:
    """Check that a file or folder can be made or replaced; nothing is left behind.

    Raises:
        ConfigError: It cannot; the message says why.
    """
    whole = path.absolute()
    try:
        if whole.exists() and not (whole.is_file() or whole.is_dir()):
            raise ConfigError(f"{path} is a device: name a file")
        folder = next(above for above in (whole, *whole.parents) if above.exists())
        with tempfile.TemporaryFile(dir=folder.parent if whole.is_file() else folder):
            pass
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _get_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
