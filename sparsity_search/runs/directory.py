"""A run directory: who may write it, and what it was made from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sparsity_search.config.schema import RunConfig
from sparsity_search.errors import ConfigError, RunMismatchError
from sparsity_search.utils.files import check_fingerprint, write_json

FORMAT = 1
RUN = "run.json"
RESULTS = "results.json"
PROFILE = "profile.json"
MATERIALISED = "materialised.json"
JOURNAL = "journal.log"
STAGES = "stages.json"
#: Profiles that a search starts from, and those that its stages found.
STARTS = "starts.json"
#: Locks of the workers.
CLAIMS = ".claims"
#: Key of `RUN`, and name of the file that other searches can use.
PRICES = "prices"

_PACKAGES = ("sparsity-search", "torch", "transformers", "optuna", "numpy", "datasets")


def read_json(path: Path) -> Any:
    """Return the JSON in a file.

    Raises:
        ConfigError: No such file, or no JSON in it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is corrupt: {error}") from error


def check_resumable(out: Path, config: RunConfig) -> None:
    """Check, before any work, that a search may start or go on in a folder.

    Raises:
        ConfigError: The folder holds something else.
        RunMismatchError: It holds a run of another configuration; names the differing keys.
    """
    if out.is_file():
        raise ConfigError(f"--out {out} is a file; name a folder")
    if (out / RUN).exists():
        run = read_json(out / RUN)
        try:
            stored = RunConfig.model_validate(run["config"])
        except (KeyError, TypeError, ValueError) as error:
            raise RunMismatchError(f"{out / RUN} is of another version, or corrupt") from error
        check_fingerprint(stored.identity(), config.identity(), f"the run in {out}")
    elif out.is_dir() and any(not f.name.startswith(".") for f in out.iterdir()):
        raise ConfigError(f"--out {out} is not empty and holds no run; name another folder")


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Own a run directory; it is made if need be.

    Raises:
        ConfigError: Another process works there.
    """
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(f"another process is searching in {out}") from error
    try:
        yield
    finally:
        lock.release()


def versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on."""
    return {name: version(name) for name in _PACKAGES}


def begin(out: Path, facts: dict[str, Any]) -> None:
    """Write ``run.json``, or check that the run that is there has the same fingerprint.

    Raises:
        RunMismatchError: The fingerprints differ.
    """
    if not (out / RUN).exists():
        write_json(out / RUN, facts)
        return
    stored = read_json(out / RUN)
    check_fingerprint(stored["fingerprint"], facts["fingerprint"], f"the run in {out}")
    write_json(out / RUN, {**facts, "created": stored["created"], "command": stored["command"]})
