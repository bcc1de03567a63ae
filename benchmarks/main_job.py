"""The plain search beside what an expert would type, for the same minutes: docs/search.md.

A cell is a model, a sparsity, a seed, minutes and a row: one or two commands in processes of their
own, whose checkpoint is then measured. Its record is kept in ``OUT/CELL/figures.json``, its
weights are not. Finished cells are skipped, and an interrupted search goes on. The most important
cells come first. ``--only`` takes shell patterns of cells, ``--table`` shows what is there:

    python benchmarks/main_job.py --data DATA --out runs/main_job --only 'smollm2-0.7-*'
    python benchmarks/main_job.py --data DATA --out runs/main_job --models gemma=gemma.gguf \
        --windows 20
    python benchmarks/main_job.py --data DATA --out runs/main_job --models smollm2 \
        gemma=gemma.gguf --table --results benchmarks/results/main_job.json

``--kills 10`` kills a search that counts bound at ten random moments, each time in a new run, and
compares its profile with that of an uninterrupted one. Time is that of whole commands.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from cells import MINUTES, ROWS, Cell, list_cells, list_commands  # these files are beside this one
from commands import Commands, take_turns
from kills import Trials, read_trials
from quality import Examination
from tables import write_table

from sparsity_search.utils.files import write_json


@dataclass(frozen=True)
class Bench:
    """What cells are measured with.

    Attributes:
        models: Models by label.
        out: Folder of all cells.
        examination: What checkpoints are measured on.
        options: Further options of all commands.
    """

    models: dict[str, str]
    out: Path
    examination: Examination
    options: list[str]

    def find_figures(self, cell: Cell) -> dict[str, Any] | None:
        """Return the record of a finished cell."""
        file = self._file(cell, "figures.json")
        return json.loads(file.read_text()) if file.exists() else None

    def check_setting(self, label: str, threads: int) -> None:
        """Refuse cells of a model that were measured otherwise; note the setting of new ones."""
        file = self.out / f"setting-{label}.json"
        setting = {**asdict(self.examination), "options": self.options, "threads": threads}
        del setting["data"]
        if not file.exists():
            write_json(file, setting)
        if (stored := json.loads(file.read_text())) != setting:
            raise SystemExit(f"cells of {label} were measured with {stored}: give another --out")

    def make(self, cell: Cell, commands: Commands) -> dict[str, Any]:
        """Run a cell, measure its checkpoint and return its record.

        Raises:
            CalledProcessError: A command failed.
        """
        record: dict[str, Any] = asdict(cell)
        model = self.models[cell.model]
        if cell.row != "dense":
            record |= self._run(cell, commands)
            run = self._file(cell, "run")
            checkpoint = run / "checkpoint"
            model = str(checkpoint if checkpoint.exists() else run)
        record |= self.examination.measure(model)
        write_json(self._file(cell, "figures.json"), record)
        self._clean(cell)
        return record

    def _run(self, cell: Cell, commands: Commands) -> dict[str, Any]:
        """Run the commands of a cell, unless they have ended; return their facts."""
        file, run = self._file(cell, "command.json"), self._file(cell, "run")
        facts = json.loads(file.read_text()) if file.exists() else {"sessions": 0}
        if "seconds" not in facts:
            facts["sessions"] += 1
            write_json(file, facts)
            if cell.minutes is None:  # no search, which would go on
                shutil.rmtree(run, ignore_errors=True)
            started = time.monotonic()
            for arguments in list_commands(
                cell, self.models[cell.model], self.examination.data, run
            ):
                commands.run([*arguments, *self.options], self._file(cell, "log.txt"))
            write_json(file, {**facts, "seconds": round(time.monotonic() - started, 1)})
        profile = json.loads((run / "profile.json").read_text())
        return {
            **json.loads(file.read_text()),
            "pruner": profile["pruner"]["name"],
            **_read_steps(run),
        }

    def _clean(self, cell: Cell) -> None:
        """Remove the weights of a cell."""
        run = self._file(cell, "run")
        for path in [run / "checkpoint", *run.glob("supernet*"), *run.glob("*.safetensors")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def _file(self, cell: Cell, name: str) -> Path:
        return self.out / cell.name / name


def _read_steps(run: Path) -> dict[str, Any]:
    """Return the steps of a search, its own clock, and what it had no time for."""
    file = run / "steps.json"
    if not file.exists():
        return {}
    stored, keys = json.loads(file.read_text()), ("name", "best", "seconds", "elapsed")
    steps = [
        {**{key: step[key] for key in keys}, "score": step["row"]["score"]}
        for step in stored["steps"]
    ]
    results = json.loads((run / "results.json").read_text())
    return {
        "clock": stored["seconds"],
        "rounds": results["search"]["rounds"],
        "steps": steps,
        "notes": results["notes"],
    }


def format_table(cells: list[Cell], bench: Bench) -> Iterator[str]:
    """Yield the lines of a Markdown table of cells."""
    columns = ["perplexity", "÷ uniform", "÷ published SparseGPT", "÷ best by hand", "minutes"]
    columns += ["ARC-easy", "last word"]
    yield "| " + " | ".join(["cell", "shipped with", *columns]) + " |"
    yield "|---" * 2 + "|---:" * len(columns) + "|"
    known = {cell: bench.find_figures(cell) for cell in cells}
    for cell, record in known.items():
        if record is None:
            yield f"| {cell.name} | not measured |" + " |" * len(columns)
            continue
        uniform, reference = (
            Cell(cell.model, row, cell.sparsity, None, cell.seed)
            for row in (f"uniform-{record.get('pruner')}", "published-sparsegpt")
        )
        rivals = [cell.beside(row) for row in ROWS if row.startswith("hand")]
        values = [
            f"{record['perplexity']:.1f}",
            _ratio(record, [bench.find_figures(uniform)]),
            _ratio(record, [bench.find_figures(reference)]),
            _ratio(record, [bench.find_figures(rival) for rival in rivals if cell.minutes]),
            _format_minutes(record),
            *(f"{record[task]:.1%}" for task in ("arc_easy", "last_word")),
        ]
        yield "| " + " | ".join([cell.name, record.get("pruner", "-"), *values]) + " |"


def _ratio(record: dict[str, Any], others: list[dict[str, Any] | None]) -> str:
    """Return a perplexity as a multiple of the best of others; ``-`` if none is measured."""
    known = [other["perplexity"] for other in others if other]
    return f"{record['perplexity'] / min(known):.3f}" if known else "-"


def _format_minutes(record: dict[str, Any]) -> str:
    """Return the minutes of a cell's commands; of a search in several sessions, by its clock."""
    if "seconds" not in record:
        return "-"
    if record["sessions"] > 1 and "clock" in record:
        return f"{record['clock'] / 60:.1f} in {record['sessions']} sessions"
    return f"{record['seconds'] / 60:.1f}"


def write_results(file: Path, cells: list[Cell], bench: Bench) -> None:
    """Write all that is measured, as one table."""
    found = [bench.find_figures(cell) for cell in cells]
    settings = {label: bench.out / f"setting-{label}.json" for label in bench.models}
    kills = {label: read_trials(bench.out / f"kills-{label}") for label in bench.models}
    table = {
        "settings": {
            label: json.loads(setting.read_text())
            for label, setting in settings.items()
            if setting.exists()
        },
        "rows": [record for record in found if record],
        "kills": [{"model": label, **row} for label, rows in kills.items() for row in rows],
    }
    write_table(file, table)


def make_all(cells: list[Cell], bench: Bench, commands: Commands) -> list[str]:
    """Make the cells that are not finished; return the names of those that failed."""
    failed = []
    for label in dict.fromkeys(cell.model for cell in cells):
        bench.check_setting(label, commands.threads)
    for cell in cells:
        if bench.find_figures(cell) is not None:
            continue
        print(f"{cell.name}: begun", flush=True)
        try:
            record = bench.make(cell, commands)
        except subprocess.CalledProcessError as error:
            failed.append(cell.name)
            print(f"{cell.name}: failed, code {error.returncode}; see its log.txt", flush=True)
        else:
            print(f"{cell.name}: {record['perplexity']:.2f}", flush=True)
    return failed


def kill(bench: Bench, n: int, commands: Commands) -> list[str]:
    """Kill searches of each model; return the names of those with another profile."""
    text = ["--calibration", f"file:{bench.examination.data / 'wikipedia_calibration.jsonl'}"]
    parts = ("calibration", "search", "final")
    short = [f"data.{part}_sequences=4" for part in parts]
    short += [f"data.{part}_length=256" for part in ("calibration", "final")]
    settings = [word for setting in short for word in ("--set", setting)]
    options = ["--sparsity", 0.6, *text, *settings, *bench.options]
    wrong = []
    for label, model in bench.models.items():
        folder = bench.out / f"kills-{label}"
        try:
            rows = Trials(commands, folder, model, options).run(n)
        except subprocess.CalledProcessError as error:
            print(f"{label}: a search failed, code {error.returncode}; see {folder / 'log.txt'}")
            wrong.append(folder.name)
            continue
        same = sum(row["same_profile"] and row["same_weights"] for row in rows)
        print(f"{label}: {same} of {len(rows)} like the uninterrupted search")
        wrong += [folder.name] * (same < len(rows))
    return wrong


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["smollm2"], help="a name or LABEL=PATH")
    parser.add_argument("--data", type=Path, required=True, help="folder of the texts")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN")
    parser.add_argument("--minutes", type=float, nargs="+", default=list(MINUTES))
    parser.add_argument("--table", action="store_true", help="measure nothing, show what is there")
    parser.add_argument("--results", type=Path, help="write all that is measured here")
    parser.add_argument("--kills", type=int, default=0, metavar="N", help="kill searches instead")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--windows", type=int, default=40, help="of the text for perplexity")
    parser.add_argument("--length", type=int, default=1024, help="tokens in each")
    parser.add_argument("--questions", type=int, default=0, help="of ARC-easy; 0: all")
    parser.add_argument("--passages", type=int, default=0, help="for last words; 0: all")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    models = {name.partition("=")[0]: name.partition("=")[2] or name for name in arguments.models}
    bench = Bench(
        models,
        arguments.out,
        Examination(
            arguments.data,
            arguments.windows,
            arguments.length,
            arguments.questions,
            arguments.passages,
        ),
        [word for setting in arguments.set for word in ("--set", setting)],
    )
    planned = list_cells(list(models), arguments.minutes)
    cells = [c for c in planned if any(fnmatch(c.name, p) for p in arguments.only)]
    failed: list[str] = []
    if not arguments.table:
        with take_turns(arguments.out, arguments.threads) as commands:
            if arguments.kills:
                failed = kill(bench, arguments.kills, commands)
            else:
                failed = make_all(cells, bench, commands)
    if not arguments.kills:
        print("\n".join(format_table(cells, bench)))
    if arguments.results:
        write_results(arguments.results, planned, bench)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
