"""Messages: short whatever the value, and what failed of the machine."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from sparsity_search.errors import (
    ConfigError,
    MachineError,
    ProfileError,
    find_machine_fault,
    show_value,
    suggest_name,
    told_of,
)


def test_bad_values_are_cut() -> None:
    deep: object = 0
    for _ in range(1000):
        deep = [deep, "x" * 1000]
    for value in (deep, "x" * 10**6, {str(i): i for i in range(10**5)}, [[1] * 999] * 999, deep):
        assert len(show_value(value)) < 1000
    assert show_value({"a": [1.5, None]}) == "{'a': [1.5, None]}"


def test_a_long_name_is_compared_in_short_time() -> None:
    assert suggest_name("wnada" + "x" * 10**7, ["wanda"]) == "Known: wanda"


def test_a_message_says_what_it_is_about() -> None:
    with pytest.raises(ProfileError, match=r"^x\.json: corrupt: no profile$"):  # noqa: SIM117
        with told_of("x.json"), told_of("corrupt", ProfileError):
            raise ConfigError("no profile")
    with pytest.raises(KeyError), told_of("x.json"):
        raise KeyError("a fault of the program")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
        (OSError("no address"), "no address"),
        (Exception("I/O error: No space (os error 28)"), "No space left on device"),
        (MemoryError(), "not enough memory: try --offload"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0"), "for 2.00 GiB"),
        (RuntimeError("shapes do not fit"), None),
        (ValueError("out of memory"), None),
    ],
)
def test_faults_of_the_machine(error: Exception, reason: str | None) -> None:
    found = find_machine_fault(error)
    assert found is None if reason is None else reason in str(found)


def test_memory_that_torch_cannot_get_is_a_fault_of_the_machine() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(10**15)
    assert "not enough memory for 4000000000000000 bytes" in str(find_machine_fault(error.value))


def test_a_fault_of_the_machine_is_an_os_error() -> None:
    assert issubclass(MachineError, OSError)
    assert str(MachineError("cannot write x: disk full")) == "cannot write x: disk full"
