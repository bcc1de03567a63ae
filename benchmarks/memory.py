"""Peak memory of building a supernet, with and without --offload, for models of growing depth.

Every step runs in a process of its own; the figures are MiB. The peak is the largest resident set
that the system saw (``ru_maxrss``), less what the process holds once it has done all of that on a
model of next to nothing: libraries, and what they keep after their first use. (A process begins
with the peak of the one that started it, which therefore imports nothing here.)

    python benchmarks/memory.py --out runs/memory.json
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HIDDEN, VOCABULARY = 512, 128
MIB = 2**20


def save(folder: Path, case: dict[str, Any]) -> dict[str, float]:
    from sparsity_search.testing.models import save_tiny_model

    save_tiny_model(
        folder,
        layers=case["depth"],
        hidden_size=case["width"],
        intermediate_size=3 * case["width"],
        num_attention_heads=8,
        num_key_value_heads=8,
        initializer_range=0.02,
    )
    return {}


def config_of(model: Path, case: dict[str, Any]) -> Any:
    from sparsity_search.config.load import load_config

    options = {
        "model.name": str(model),
        "model.dtype": "float32",
        "model.device": "cpu",
        "model.offload": case["offload"],
        "pruner.name": case["pruner"],
        "budget.sparsity": 0.5,
        "supernet.store": case["store"],
        "data.calibration_length": 128,
        "data.calibration_sequences": 8,
    }
    return load_config(None, options)


def measure(model: Path, case: dict[str, Any]) -> dict[str, float]:
    """Load, build, and return the peaks; in a process of its own."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder), {"depth": 2, "width": 32})
        load_and_build(config_of(Path(folder), case), lambda: None)
    before, peaks = peak(), list[int]()
    session = load_and_build(config_of(model, case), lambda: peaks.append(peak() - before))
    block = sum(p.numel() * p.element_size() for p in session.subject.blocks[0].parameters())
    whole = sum(p.numel() * p.element_size() for p in session.loaded.model.parameters())
    return {
        "block": block / MIB,
        "model": whole / MIB,
        "libraries": before / MIB,
        "loaded": peaks[0] / MIB,
        "built": (peak() - before) / MIB,
    }


def load_and_build(config: Any, on_loaded: Callable[[], None]) -> Any:
    """Load a model, build its supernet, and return the session."""
    import torch

    from sparsity_search.engine.monitor import Monitor
    from sparsity_search.engine.plugins import Plugins, choose_units
    from sparsity_search.engine.session import open_session
    from sparsity_search.profiles.budget import Budget
    from sparsity_search.spaces.files import load_space
    from sparsity_search.supernet.build import SupernetDesign, build_supernet
    from sparsity_search.supernet.disk import SupernetFolder

    plugins = Plugins.of(config)
    session = open_session(
        config.model, [], 0, Monitor(), units=choose_units(config, plugins.pruner)
    )
    on_loaded()
    space = load_space(config.space).of_levels.build(session.subject.layout, Budget(0.5), {})
    tokens = torch.arange(8 * 128).remainder(VOCABULARY).view(8, 128)
    plan = SupernetDesign(pruner=plugins.pruner, tables=space.tables(), centre=space.base)
    with tempfile.TemporaryDirectory() as folder:
        on_disk = config.supernet.store == "disk"
        files = SupernetFolder(Path(folder), {}) if on_disk else None
        build_supernet(session.subject, tokens, plan, files)
    return session


def estimate(model: Path, case: dict[str, Any]) -> dict[str, float]:
    """Return what `inspect` says of it; in a process of its own."""
    from sparsity_search.workflow.inspect import inspect

    return {"estimate": inspect(config_of(model, case)).estimate.build_bytes / MIB}


def peak() -> int:
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else 1024 * kilobytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depths", default="6,12,24")
    parser.add_argument("--width", type=int, default=HIDDEN)
    parser.add_argument("--pruner", default="wanda")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--job", help="Of a process of its own: function, folder and case.")
    given = parser.parse_args()
    if given.job:
        name, folder, case = json.loads(given.job)
        found = {"save": save, "measure": measure, "estimate": estimate}[name](Path(folder), case)
        print(json.dumps(found))
        return
    rows = []
    for depth in map(int, given.depths.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "model"
            _apart(["save", str(model), {"depth": depth, "width": given.width}])
            for store, offload in (("memory", False), ("disk", False), ("disk", True)):
                case = {"pruner": given.pruner, "store": store, "offload": offload}
                row = {"blocks": depth, **case}
                for job in ("measure", "estimate"):
                    row |= _apart([job, str(model), case])
                rows.append(row)
                print(json.dumps(row), flush=True)
    if given.out:
        from tables import merge_rows  # the file beside this one

        merge_rows(given.out, rows, "block", "blocks", "pruner", "store", "offload")


def _apart(job: list[Any]) -> dict[str, float]:
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
