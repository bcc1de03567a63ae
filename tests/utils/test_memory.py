from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from sparsity_search.utils.memory import measure_memory


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="Linux tells it in another way too")
def test_memory_is_what_the_system_says() -> None:
    kib = int(Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0])
    assert measure_memory() == pytest.approx(1024 * kib, rel=0.01)


def test_memory_without_a_system_that_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sysconf")
    assert measure_memory() == math.inf
