"""A damaged journal is one line that names file, line and remedy; never another history."""

from __future__ import annotations

import json
import resource
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from sparsity_search.errors import MachineError, RunMismatchError
from sparsity_search.testing.problems import toy_space
from sparsity_search.trials.history import Fidelity, Measurement, Score
from sparsity_search.trials.storages import join_journal, open_journal
from sparsity_search.trials.store import Store, read_measurements, read_profiles
from sparsity_search.utils.random import create_generator

MADE = [
    Measurement(
        round=i,
        rung=0,
        candidate=(i, -i, 12),
        fidelity=Fidelity(512, subset=i),
        score=Score(0.75 + i, (0.5, 1.0 + 2 * i)),
        seconds=0.25,
        elapsed=0.5 * i,
    )
    for i in range(4)
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal: line 1 creates the study, 2 has its fingerprint, 3 to 6 are measurements."""
    file = tmp_path / "journal.log"
    store = Store(open_journal(file), "study", {"seed": 0})
    for measurement in MADE:
        store.add(measurement)
    return file


def refusal(path: Path, action: Callable[[], object]) -> str:
    with pytest.raises(RunMismatchError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert "restore" in message
    return message


#: What becomes of the fourth line.
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "garbage": lambda _: b"\x00\xff\xfe garbage\n",
    "text": lambda _: b"garbage\n",
    "empty line": lambda _: b"\n",
    "number": lambda _: b"5\n",
    "list": lambda _: b"[1, 2]\n",
    "bracket": lambda line: line.replace(b"{", b"[", 1),
    "bit": lambda line: line.replace(b"op_code", b"op_co\xe5e"),
    "key": lambda line: line.replace(b"study_id", b"study_ie"),
    "operation": lambda line: line.replace(b'"op_code":4', b'"op_code":77'),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_line_is_named(path: Path, name: str) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 6
    lines[3] = DAMAGES[name](lines[3])
    damaged = b"".join(lines)
    path.write_bytes(damaged)
    for action in (
        lambda: open_journal(path),
        lambda: join_journal(path),
        lambda: read_measurements(path, "study"),
    ):
        message = refusal(path, action)
        assert "damaged in line 4 " in message
        assert "delete this line and all after it" in message
    assert path.read_bytes() == damaged
    path.write_bytes(b"".join(lines[:3]))  # as the message says
    assert Store(open_journal(path), "study", {"seed": 0}).load() == MADE[:1]


@pytest.mark.parametrize("end", [b"garbage\n", b"\n", b'{"op_code":4\n'])
def test_the_last_line_is_read_too(path: Path, end: bytes) -> None:
    """Optuna ignores it, and fails after the next one."""
    path.write_bytes(path.read_bytes() + end)
    assert "damaged in line 7 " in refusal(path, lambda: open_journal(path))


def test_a_worker_that_reads_on(path: Path) -> None:
    store = Store(join_journal(path), "study", {"seed": 0})
    assert store.load() == MADE
    number = len(path.read_bytes().splitlines())
    with path.open("ab") as file:
        file.write(b"garbage\n{}\n")
    assert f"damaged in line {number + 1} " in refusal(path, store.load)


def test_no_digit_of_a_measurement_changes_the_history(path: Path) -> None:
    """Whatever digit is changed, the history is the same, shorter, or refused."""
    whole = path.read_bytes()
    start = sum(map(len, whole.splitlines(keepends=True)[:2]))
    places = [i for i in range(start, len(whole)) if chr(whole[i]).isdigit()]
    refused = 0
    for place in create_generator(0, "digits").choice(places, 150, replace=False):
        digit = str((int(chr(whole[place])) + 1) % 10).encode()
        path.write_bytes(whole[:place] + digit + whole[place + 1 :])
        try:
            found = Store(open_journal(path), "study", {"seed": 0}).load()
        except RunMismatchError:
            refused += 1
        else:
            assert [m for m in MADE if m in found] == found
    assert refused > 30


@pytest.mark.parametrize("what", ["score", "parts", "candidate", "tokens", "elapsed"])
def test_a_changed_measurement_is_named(path: Path, what: str) -> None:
    change = {
        "score": (b"2.75", b"1.75"),
        "parts": (b"[0.5,5.0]", b"[0.5,4.0]"),
        "candidate": (b'"2,-2,12"', b'"2,-2,11"'),
        "tokens": (b'"tokens":512,"subset":2', b'"tokens":513,"subset":2'),
        "elapsed": (b'"elapsed":1.0', b'"elapsed":9.0'),
    }[what]
    whole = path.read_bytes()
    assert whole.count(change[0]) == 1
    path.write_bytes(whole.replace(*change))
    storage = open_journal(path)
    for action in (
        lambda: Store(storage, "study", {"seed": 0}).load(),
        lambda: read_measurements(path, "study"),
        lambda: read_profiles(path, "study", toy_space().layout),
    ):
        message = refusal(path, action)
        assert "measurement 2 of the study 'study' is not as it was written" in message


def test_a_measurement_of_another_study(path: Path) -> None:
    """Each is of its stage: the same candidate scores otherwise in another one."""
    Store(open_journal(path), "other", {"seed": 1})
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    moved = lines[4].replace(b'"study_id":0', b'"study_id":1')
    path.write_bytes(b"".join([*lines[:4], *lines[5:], moved]))
    assert "measurement 0 of the study 'other'" in refusal(
        path, lambda: read_measurements(path, "other")
    )


def test_a_database_too(tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    store = Store(f"sqlite:///{file}", "study", {})
    for measurement in MADE:
        store.add(measurement)
    assert store.load() == MADE
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("UPDATE trial_values SET value = value + 1 WHERE trial_id = 3")
        connection.commit()
    with pytest.raises(RunMismatchError, match=r"the storage is damaged: measurement 2 "):
        Store(f"sqlite:///{file}", "study", {}).load()


def test_trials_of_an_earlier_version_have_no_checksum(path: Path) -> None:
    lines = path.read_text().splitlines()
    for i, line in enumerate(lines[2:], start=2):
        record = json.loads(line)
        del record["user_attrs"]["measurement"]["checksum"]
        lines[i] = json.dumps(record)
    path.write_text("\n".join(lines) + "\n")
    assert read_measurements(path, "study") == MADE


def test_a_full_disk_is_one_line_with_the_path(path: Path) -> None:
    store = Store(join_journal(path), "study", {"seed": 0})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, hard))
    try:
        with pytest.raises(MachineError, match=r"^cannot write .*journal\.log: File too large$"):
            store.add(MADE[0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert Store(open_journal(path), "study", {"seed": 0}).load() == MADE
