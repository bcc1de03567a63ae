"""A store that waits for its database while that does not answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from typing import TypeVar

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from sparsity_search.engine.monitor import Monitor
from sparsity_search.errors import MachineError
from sparsity_search.study.study import Recorder
from sparsity_search.trials.history import Measurement

#: Seconds that a search waits for a database that does not answer.
PATIENCE = 600.0
#: Seconds between attempts.
_PAUSE = 1.0

_FAILURES = (StorageInternalError, SQLAlchemyError)

T = TypeVar("T")


class PatientStore:
    """A store whose database may be away for a while.

    Args:
        build: Function that opens the store.
        monitor: Told when the database stops answering and when it answers again; it may stop
            the wait.
        patience: Seconds to wait for it.

    Raises:
        MachineError: It did not answer for so long; methods raise it too.
    """

    def __init__(
        self, build: Callable[[], Recorder], monitor: Monitor, patience: float = PATIENCE
    ) -> None:
        self._monitor, self._patience = monitor, patience
        self._store = self._wait_for(build)

    def load(self, after: int = 0) -> list[Measurement]:
        """Return the recorded measurements, oldest first, without the first ``after``."""
        return self._wait_for(lambda: self._store.load(after))

    def add(self, measurement: Measurement) -> None:
        """Record one measurement."""
        attempts = count()

        def record() -> None:
            # an earlier attempt may have been recorded although its answer was lost
            if next(attempts) == 0 or not self._holds(measurement):
                self._store.add(measurement)

        self._wait_for(record)

    def _holds(self, wanted: Measurement) -> bool:
        key = wanted.candidate, wanted.fidelity
        return any((m.candidate, m.fidelity) == key for m in self._store.load())

    def _wait_for(self, call: Callable[[], T]) -> T:
        """Return the result of ``call``, which is repeated while the database does not answer."""
        try:
            return call()
        except _FAILURES as error:
            last: Exception = error
        limit = f"{self._patience / 60:.3g} minutes"
        self._monitor.tell(
            f"the database does not answer ({_name(last)}): waiting for it, at most {limit}"
        )
        ends = time.monotonic() + self._patience
        while time.monotonic() < ends and not self._monitor.stopped():
            time.sleep(min(_PAUSE, self._patience))
            try:
                found = call()
            except _FAILURES as error:
                last = error
            else:
                self._monitor.tell("the database answers again")
                return found
        raise MachineError(
            f"the database does not answer ({_name(last)}); what was measured before is kept: "
            "run the same command again when it does"
        ) from last


def _name(error: Exception) -> str:
    """Return the driver's name of an error; its text may hold a user or a host."""
    return type(error.__cause__ or error).__name__
