"""The other processes that measure candidates of a search, started and ended with it."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from sparsity_search.config.schema import RunConfig
from sparsity_search.engine.job import SearchJob
from sparsity_search.runs.redact import STORAGE_VARIABLE

#: Seconds that a worker may take to end its measurement when the search ends.
_PATIENCE = 60.0


def share_cores(config: RunConfig) -> None:
    """Limit this process to its share of the cores, unless ``OMP_NUM_THREADS`` is set."""
    on_cpu = config.model.device == "cpu" or not torch.cuda.is_available()
    if config.study.workers > 1 and on_cpu and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // config.study.workers))


@contextmanager
def run_crew(job: SearchJob) -> Iterator[None]:
    """Run the other workers of a search: on the GPUs in turn, or all on the CPU.

    Their output goes to ``worker-N.log`` in the run directory. If a worker fails, there is a
    warning and the others do its work.
    """
    n_others = job.config.study.workers - 1
    with ExitStack() as stack:
        processes = []
        for number in range(1, n_others + 1):
            log = stack.enter_context(_get_log_file(job, number).open("wb"))
            processes.append(
                subprocess.Popen(
                    _build_command(job, number),
                    env=_build_environment(job),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            )
        try:
            yield
        finally:
            _end_workers(job, processes)


def _get_log_file(job: SearchJob, number: int) -> Path:
    return job.directory.worker_log_file(number)


def _build_command(job: SearchJob, number: int) -> list[str]:
    device = job.session.loaded.model.device
    name = device.type
    if name == "cuda":
        name = f"cuda:{((device.index or 0) + number) % torch.cuda.device_count()}"
    command = ["work", str(job.directory.path), "--device", name]
    return [sys.executable, "-m", "sparsity_search", *command]


def _build_environment(job: SearchJob) -> dict[str, str]:
    more = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # results depend on it
    if job.config.study.storage:
        more[STORAGE_VARIABLE] = job.config.study.storage
    return {**os.environ, **more}


def _end_workers(job: SearchJob, processes: list[subprocess.Popen[bytes]]) -> None:
    """End the workers, and warn about those that have failed."""
    for process in processes:
        if process.poll() is None:
            process.terminate()  # they end after the present measurement
    for number, process in enumerate(processes, 1):
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.returncode in (1, 2):
            lines = _get_log_file(job, number).read_text("utf-8", "replace").strip().splitlines()
            told = lines[-1] if lines else "no message"
            warnings.warn(f"worker {number} of {job.directory.path} failed: {told}", stacklevel=2)
