"""The cells of `main_job.py`: their order, and the commands of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

#: Pruners of the profiles that cost no search: those that plans end with.
PRUNERS = ("sparsegpt", "alps", "admm")
#: Options of SparseGPT as in its paper: statistics by block, outputs of the pruned model alone.
_PUBLISHED = ["--set", "pruner.towards_dense=0", "--set", "data.refresh=block"]
#: The pruner that ends the searches by hand.
_LAST = "alps"
#: Times asked for, the most telling one first.
MINUTES = (30.0, 10.0, 60.0)
#: Minutes from which a cell waits for all shorter ones.
LONG = 60
#: Sparsities of the packaged model and of others, the most telling one first, and their seeds.
SPARSITIES = {"smollm2": {0.7: 3, 0.6: 1, 0.5: 1}}
OTHERS = {0.6: 1, 0.5: 1}


def _list_hand(start: str) -> list[str]:
    """Return the options that an expert would type."""
    return [
        *("--pruner", "sparsegpt", "--initial", "gauss_newton"),
        *("--set", f"allocators.gauss_newton={{start: {start}, stages: 2}}"),
        *("--hints", "gradients", "--stages", "2", "--finalise", _LAST),
    ]


#: Options of searches besides model, text, seed, sparsity and minutes. EvoPress has as much text
#: to calibrate on as the others, and reads the rest of the file.
SEARCHES: dict[str, list[str]] = {
    "plan": [],
    "hand-knapsack": _list_hand("knapsack"),
    "hand-cfsp": _list_hand("cfsp"),
    "evopress": [
        *("--config", "evopress_superfast", "--space", "evopress_default", "--finalise", _LAST),
        *("--set", "data.calibration_sequences=16", "--set", "data.calibration_length=1024"),
        *("--set", "data.search_sequences=256"),
    ],
}
#: All rows, the most telling one first.
ROWS = (
    "dense",
    "published-sparsegpt",
    *(f"uniform-{pruner}" for pruner in PRUNERS),
    *SEARCHES,
    *(f"owl-{pruner}" for pruner in PRUNERS),
)


@dataclass(frozen=True)
class Cell:
    """One measurement; ``dense`` has no sparsity, and only searches have minutes."""

    model: str
    row: str
    sparsity: float | None = None
    minutes: float | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        parts = [self.model]
        parts += [] if self.sparsity is None else [f"{self.sparsity:g}", f"seed{self.seed}"]
        parts += [] if self.minutes is None else [f"{self.minutes:g}min"]
        return "-".join([*parts, self.row])

    def beside(self, row: str) -> Cell:
        """Return the cell of another row."""
        return replace(self, row=row)


def list_cells(models: Sequence[str], minutes: Sequence[float]) -> list[Cell]:
    """Return all cells, the most important one first."""
    cells = [cell for model in models for cell in _list_of_model(model, minutes)]

    def key(cell: Cell) -> tuple[int, ...]:
        return (
            cell.seed,
            (cell.minutes or 0) >= LONG,
            0 if cell.sparsity is None else list(_list_seeds(cell.model)).index(cell.sparsity),
            cell.row.startswith(("owl", "evopress")),
            models.index(cell.model),
            -1 if cell.minutes is None else minutes.index(cell.minutes),
            ROWS.index(cell.row),
        )

    return sorted(cells, key=key)


def _list_seeds(model: str) -> dict[float, int]:
    """Return the number of seeds of each sparsity."""
    return SPARSITIES.get(model, OTHERS)


def _list_of_model(model: str, minutes: Sequence[float]) -> Iterator[Cell]:
    yield Cell(model, "dense")
    for sparsity, n_seeds in _list_seeds(model).items():
        for seed in range(n_seeds):
            for row in ROWS[1:]:
                times = minutes if row in SEARCHES else [None]
                yield from (Cell(model, row, sparsity, each, seed) for each in times)


def list_commands(cell: Cell, model: str, data: Path, run: Path) -> list[list[object]]:
    """Return the arguments of the commands that make a cell's checkpoint.

    Args:
        cell: The cell.
        model: Its model, by name or path.
        data: Folder of the texts.
        run: Folder to write: a run directory, or a checkpoint.
    """
    text = f"file:{data / 'wikipedia_calibration.jsonl'}"
    shared = [model, "--calibration", text, "--seed", cell.seed]
    budget = ["--sparsity", cell.sparsity]
    if cell.row in SEARCHES:
        limit = [*budget, "--minutes", cell.minutes]
        return [["search", *shared, *limit, *SEARCHES[cell.row], "--out", run]]
    start, _, pruner = cell.row.partition("-")
    prune = ["prune", *shared, "--pruner", pruner, "--out", run]
    if start in ("uniform", "published"):
        return [[*prune, *budget, *(_PUBLISHED if start == "published" else [])]]
    profile = run.with_name(f"{start}.json")
    return [
        ["allocate", *shared, *budget, "--allocator", start, "--out", profile],
        [*prune, "--profile", profile],
    ]
