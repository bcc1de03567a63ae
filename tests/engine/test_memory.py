from __future__ import annotations

import math
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sparsity_search.engine.memory import measure_memory


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="Linux tells it in another way too")
def test_memory_is_what_the_system_says() -> None:
    kib = int(Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0])
    assert measure_memory("cpu") == pytest.approx(1024 * kib, rel=0.01)


def test_memory_without_a_system_that_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sysconf")
    assert measure_memory("cpu") == math.inf


def test_memory_of_a_gpu_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is needed: what torch would say of one is put in its place."""
    known = {torch.device("cuda:1"): SimpleNamespace(total_memory=80)}
    monkeypatch.setattr(torch.cuda, "get_device_properties", known.__getitem__)
    assert measure_memory(torch.device("cuda:1")) == 80
