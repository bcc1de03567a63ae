from __future__ import annotations

import time

import pytest
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import OperationalError

from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.patience import PATIENCE, PatientStore
from sparsity_search.errors import MachineError, RunMismatchError
from sparsity_search.trials.history import Fidelity, Measurement, Score

ONE, TWO = (
    Measurement(round=0, rung=0, candidate=(i,), fidelity=Fidelity(8), score=Score(1.0, (1.0,)))
    for i in range(2)
)


class Told(Monitor):
    """Keeps what it is told, and stops after some messages."""

    def __init__(self, enough: int = 99) -> None:
        super().__init__()
        self.messages: list[str] = []
        self._enough = enough

    def tell(self, message: str) -> None:
        self.messages.append(message)

    def stopped(self) -> bool:
        return len(self.messages) >= self._enough


class Flaky:
    """A store that is away for the next ``away`` calls; it may record without an answer."""

    def __init__(self, away: int = 0, *, answer_lost: bool = False) -> None:
        self.recorded: list[Measurement] = []
        self.away, self.answer_lost = away, answer_lost

    def _check(self) -> None:
        if self.away:
            self.away -= 1
            refused = OperationalError("postgresql://me:hunter2@host", {}, Exception("hunter2"))
            raise StorageInternalError("An exception is raised during the commit") from refused

    def load(self, after: int = 0) -> list[Measurement]:
        self._check()
        return self.recorded[after:]

    def add(self, measurement: Measurement) -> None:
        if self.answer_lost:
            self.recorded.append(measurement)
        self._check()
        if not self.answer_lost:
            self.recorded.append(measurement)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time that passes only in sleep."""
    passed = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: sum(passed))
    monkeypatch.setattr(time, "sleep", passed.append)


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("answer_lost", [False, True])
def test_a_database_that_comes_back_is_waited_for(answer_lost: bool) -> None:
    flaky, monitor = Flaky(), Told()
    store = PatientStore(lambda: flaky, monitor)
    store.add(ONE)
    assert not monitor.messages
    flaky.away, flaky.answer_lost = 5, answer_lost
    store.add(TWO)
    flaky.away = 2
    assert store.load() == [ONE, TWO]
    assert store.load(after=1) == [TWO]
    away = "the database does not answer (OperationalError): waiting for it, at most 10 minutes"
    assert monitor.messages == [away, "the database answers again"] * 2


@pytest.mark.usefixtures("clock")
def test_the_wait_has_an_end() -> None:
    store = PatientStore(Flaky, Told())
    store._store.away = 10**6  # type: ignore[attr-defined]
    with pytest.raises(MachineError, match=r"does not answer \(OperationalError\)") as caught:
        store.load()
    assert time.monotonic() == pytest.approx(PATIENCE, abs=2)
    assert "hunter2" not in str(caught.value)


@pytest.mark.usefixtures("clock")
def test_the_wait_ends_when_the_search_is_stopped() -> None:
    def away() -> Flaky:
        raise StorageInternalError

    with pytest.raises(MachineError):
        PatientStore(away, Told(enough=1))
    assert time.monotonic() == 0


def test_other_errors_are_not_waited_for() -> None:
    def refuse() -> Flaky:
        raise RunMismatchError("another fingerprint")

    monitor = Told()
    with pytest.raises(RunMismatchError):
        PatientStore(refuse, monitor)
    assert not monitor.messages
