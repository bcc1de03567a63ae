"""The interface of trackers, which send the course of a job to a tool that keeps experiments."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar


class Tracking(ABC):
    """One experiment in a tool, from its beginning to its end."""

    @abstractmethod
    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers.

        Args:
            values: By name; all are finite.
            step: Rises with each call.
        """

    @abstractmethod
    def attach(self, path: Path) -> None:
        """Keep a file, such as a report."""

    @abstractmethod
    def close(self, *, failed: bool = False) -> None:
        """End the experiment.

        Args:
            failed: Whether the job ended by an error.
        """


class Tracker(ABC):
    """A tool that keeps experiments. Plugins are frozen keyword-only dataclasses of settings.

    Where it keeps them, and with which credentials, is set as the tool's own users know it: by
    its environment variables.

    Attributes:
        experimental: Why users should prefer another tracker; empty if there is no reason.
    """

    experimental: ClassVar[str] = ""

    @abstractmethod
    def check(self) -> None:
        """Check, before any work, that the tool is installed.

        Raises:
            MissingExtraError: It is not.
        """

    @abstractmethod
    def open(self, name: str, settings: Mapping[str, Any], folder: Path) -> Tracking:
        """Begin an experiment.

        Args:
            name: Its name for people.
            settings: The configuration, with dotted keys.
            folder: Where a tool that keeps files does so, unless its users say otherwise.
        """
