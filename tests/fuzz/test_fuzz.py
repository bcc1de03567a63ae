"""Wrong input of every kind is one clear line: never a traceback, never a hang."""

from __future__ import annotations

import contextlib
import io
import random
import signal
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from sparsity_search.errors import MachineError, SparsitySearchError
from tests.fuzz.readers import Reader, build_readers

#: Inputs of each reader: 525 in all.
N = 25
#: Longest message, in characters, and seconds after which a reader counts as hanging.
LONGEST, HANGING = 1300, 60
NAMES = (
    *("config", "space", "parameters", "set", "options", "plugin", "profile", "start", "convert"),
    *(
        "scores",
        "prices",
        "dataset",
        "hint",
        "run",
        "results",
        "steps",
        "text",
        "questions",
        "owl",
    ),
    *("recipe", "evopress"),
)


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    return build_readers(tmp_path_factory.mktemp("fuzz"))


@contextlib.contextmanager
def watchdog() -> Iterator[None]:
    def bark(_: int, frame: FrameType | None) -> None:
        raise TimeoutError("a reader hangs")

    before = signal.signal(signal.SIGALRM, bark)
    signal.alarm(HANGING)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def read(reader: Reader, given: object) -> str:
    """Return the outcome of a reading: ``accepted``, ``refused``, or what is wrong with it."""
    told = io.StringIO()
    try:
        with (
            watchdog(),
            contextlib.redirect_stderr(told),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            reader.read(given)
    except MachineError as error:
        return f"blames the machine: {error}"
    except SparsitySearchError as error:
        message, code = " ".join(str(error).split()), 2  # as the command line shows it
    except SystemExit as error:
        message, code = told.getvalue(), error.code or 0
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    else:
        return "accepted"
    if code == 0:
        return "accepted"
    lines = message.splitlines()
    if code != 2 or len(lines) != 1 or not lines[0].strip():
        return f"exit code {code}, {len(lines)} lines: {message[:200]}"
    return "refused"


@pytest.mark.parametrize("name", NAMES)
def test_wrong_input_is_one_line(
    readers: dict[str, Reader], name: str, tmp_path: Path, record_property: pytest.RecordProperty
) -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(N):
        folder = tmp_path / str(seed)
        folder.mkdir()
        given = readers[name].make(folder, random.Random(f"{name} {seed}"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome = read(readers[name], given)
        outcomes[outcome if outcome in ("accepted", "refused") else f"{seed}: {outcome}"] += 1
    for outcome in ("accepted", "refused"):
        record_property(outcome, outcomes.pop(outcome, 0))
    assert not outcomes, "\n".join(outcomes)


def test_every_reader_has_its_inputs(readers: dict[str, Reader]) -> None:
    assert set(readers) == set(NAMES)
    assert N * len(NAMES) == 525
