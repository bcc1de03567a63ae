"""What layers are pruned on, and what they aim at: the table of docs/pruners.md.

    python benchmarks/targets.py --models smollm2=smollm2 --data DATA \
        --results benchmarks/results/targets.json

A case is a model, a sparsity, a pruner, `data.refresh` and `pruner.towards_dense`, for the uniform
profile. Cases that the table of ``--results`` has are skipped. ``--case`` takes shell patterns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from tables import merge_rows, read_table  # the file beside this one

from sparsity_search.config.load import load_config
from sparsity_search.data.sequences import Request
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.session import Session, open_session
from sparsity_search.models.running.walk import Refresh
from sparsity_search.profiles.budget import Budget
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.registry import EVALUATORS, PRUNERS

#: Sparsities of each model.
SPARSITIES = {"smollm2": (0.5, 0.7), "gemma": (0.5, 0.6)}
#: Way of pruning and part of the dense target.
WAYS: tuple[tuple[Refresh, float], ...] = (
    *(("block", 0.0), ("layer", 0.0), ("layer", 0.25)),
    *(("layer", 0.5), ("layer", 1.0), ("layer", 0.1)),
)
PRUNED_WITH = ("sparsegpt", "admm", "alps")
#: What identifies a case.
KEYS = ("model", "sparsity", "pruner", "refresh", "towards_dense")


@dataclass(frozen=True)
class Case:
    """One measurement; see `KEYS`."""

    model: str
    sparsity: float
    pruner: str
    refresh: Refresh
    towards_dense: float

    @property
    def name(self) -> str:
        return "-".join(map(str, asdict(self).values()))


def list_cases(models: list[str]) -> Iterator[Case]:
    """Yield the cases, those of one model together."""
    for model in models:
        for pruner in PRUNED_WITH:
            for sparsity in SPARSITIES[model]:
                for refresh, share in WAYS:
                    yield Case(model, sparsity, pruner, refresh, share)


def open_model(path: str, data: Path, windows: int) -> Session:
    """Return a model with 16 x 1,024 tokens to calibrate on, as many others, and the test text."""
    passages = f"file:{data / 'wikipedia_calibration.jsonl'}"
    requests = [
        Request("calibration", passages, 16, 1024),
        Request("final", passages, 16, 1024),
        Request("test", f"file:{data / 'wikitext2_valid.txt'}", windows, 1024),
    ]
    section = load_config(None, {"model.name": path}).model
    return open_session(section, requests, 0, Monitor(), units="weights")


def measure(case: Case, session: Session) -> dict[str, Any]:
    """Prune the model uniformly, and restore it."""
    subject, text = session.subject, session.text
    pruner = PRUNERS.create(case.pruner, towards_dense=case.towards_dense)
    profile = Budget(case.sparsity).uniform(subject.layout)
    with subject.preserved():
        started = time.process_time()
        prune_sequentially(subject, profile, pruner, text["calibration"], refresh=case.refresh)
        seconds = time.process_time() - started
        perplexities = measure_perplexities(session)
    return {**asdict(case), **perplexities, "cpu_seconds": round(seconds, 1)}


def measure_perplexities(session: Session) -> dict[str, float]:
    """Return the perplexity of the model as it is, by name of the text."""
    model, proxy = session.loaded.model, EVALUATORS.create("perplexity")
    texts = {name: session.text[name] for name in ("final", "test")}
    return {
        name: float(proxy.bind(model, text).score(model, range(len(text))).value)
        for name, text in texts.items()
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", required=True, metavar="smollm2|gemma=MODEL")
    parser.add_argument("--data", type=Path, required=True, help="folder of the texts")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--case", nargs="+", default=["*"], metavar="PATTERN")
    parser.add_argument("--windows", type=int, default=40, help="of 1,024 tokens of the test text")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    models = dict(each.split("=", 1) for each in arguments.models)
    file: Path = arguments.results
    known = read_table(file)["rows"] if file.exists() else []
    done = {tuple(row[key] for key in KEYS) for row in known}
    opened: dict[str, Session] = {}
    for case in list_cases(list(models)):
        wanted = any(fnmatch(case.name, pattern) for pattern in arguments.case)
        if not wanted or tuple(asdict(case).values()) in done:
            continue
        if case.model not in opened:
            opened = {
                case.model: open_model(models[case.model], arguments.data, arguments.windows)
            }
        row = measure(case, opened[case.model])
        merge_rows(file, [{**row, "windows": arguments.windows}], *KEYS)
        print(row, flush=True)


if __name__ == "__main__":
    main()
