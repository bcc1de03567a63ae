"""Which sensitivity predicts best: the table of docs/sensitivities.md, on SmolLM2-135M at 70%.

Two hundred random profiles of exactly 70% are measured on a supernet of Wanda masks: the KL to the
dense model on text that no estimate sees. Each estimate's sum over units is ranked against it
(Kendall's tau), and the perplexity of the profile that its knapsack gives is measured after
sequential pruning. What is done is kept in ``OUT``, so the script goes on where it was stopped:

    python benchmarks/sensitivities.py --calibration wikipedia_calibration.jsonl \
        --heldout wikipedia_heldout.jsonl --test wikitext2_valid.txt \
        --out runs/sensitivities --table benchmarks/results/sensitivities.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from scipy.stats import kendalltau
from tables import slug, write_table  # the file beside this one

from sparsity_search.config.load import load_config
from sparsity_search.data.sequences import Request
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.session import Session, open_session, request_calibration
from sparsity_search.models.running.divergence_expansion import DivergenceExpansion
from sparsity_search.profiles.budget import Bounds, Budget
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import SparsityProfile, from_counts
from sparsity_search.profiles.scores import build_count_tables
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.registry import ALLOCATORS, EVALUATORS, PRUNERS, Factory
from sparsity_search.runs.scores import load_scores, save_scores
from sparsity_search.supernet.build import SupernetDesign, build_supernet
from sparsity_search.supernet.switch import Supernet
from sparsity_search.utils.files import write_json
from sparsity_search.utils.random import create_generator

TARGET = 0.7
PROFILES = 200
#: The row of the gradients taken at the uniform profile.
GRADIENTS = "gradients at uniform"
LEVELS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
#: Each estimate is a sensitivity with settings, all of Wanda's masks unless a pruner is named.
ESTIMATES: dict[str, dict[str, Any]] = {
    "layer_error": {},
    "layer_error, absolute": {"name": "layer_error", "relative": False},
    "block_error": {"sequences": 2, "length": 512},
    "single_kl": {"sequences": 1, "length": 512},
    "fisher": {},
    "fisher, span 16": {"name": "fisher", "span": 16},
    "fisher, span 128": {"name": "fisher", "span": 128},
    "fisher, sequences": {"name": "fisher", "span": 0},
    "fisher, 4 draws": {"name": "fisher", "draws": 4},
    "fisher, 4 draws of sequences": {"name": "fisher", "draws": 4, "span": 0},
    "fisher, SparseGPT's changes": {"name": "fisher", "pruner": "sparsegpt"},
    "fisher, pairs": {"name": "fisher", "pairs": True},
}


def random_profiles(layout: Layout) -> list[SparsityProfile]:
    """Return profiles of exactly `TARGET`: a random curve over depth, roles and single units."""
    rng = create_generator(0, "random profiles")
    blocks = np.array([unit.block for unit in layout])
    names = sorted({unit.role for unit in layout})
    roles = np.array([names.index(unit.role) for unit in layout])
    depth = np.linspace(0, 1, layout.n_blocks)
    found = []
    for _ in range(PROFILES):
        spread = rng.uniform(0, (0.08, 0.08, 0.06, 0.10))
        knots = rng.normal(0, spread[0], 5)
        curve = np.interp(depth, np.linspace(0, 1, 5), knots)
        curve += rng.normal(0, spread[1], layout.n_blocks)
        wanted = TARGET + curve[blocks] + rng.normal(0, spread[2], len(names))[roles]
        wanted += rng.normal(0, spread[3], len(layout))
        found.append(on_grid(layout, np.clip(wanted, 0.2, 0.97)))
    return found


def on_grid(layout: Layout, sparsities: np.ndarray) -> SparsityProfile:
    """Return the profile of the target nearest to ``sparsities``, in hundredths of each unit.

    What rounding leaves goes to the next unit, so the total is off by half of such a step.
    """
    counts, carry = [], 0
    wanted_counts = Budget(TARGET).project(layout, sparsities).removed
    for table, wanted in zip(hundredths(layout), wanted_counts, strict=True):
        grid = np.array(table)
        counts.append(int(grid[np.abs(grid - wanted - carry).argmin()]))
        carry += wanted - counts[-1]
    return from_counts(layout, counts)


def hundredths(layout: Layout) -> list[tuple[int, ...]]:
    """Return the counts of a supernet's levels."""
    return [
        tuple(sorted({max(round(i / 100 * unit.count), unit.zeros) for i in range(101)}))
        for unit in layout
    ]


class Bench:
    """Everything that is measured, on one session that is opened when it is needed."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.out: Path = arguments.out
        self._arguments = arguments
        self._session: Session | None = None
        self._supernet: Supernet | None = None

    @property
    def session(self) -> Session:
        if self._session is None:
            self._session = _session(self._arguments)
        return self._session

    @property
    def supernet(self) -> Supernet:
        """Wanda's masks in hundredths, later blocks seeing the uniform level."""
        if self._supernet is None:
            layout = self.session.subject.layout
            plan = SupernetDesign(
                pruner=PRUNERS.create("wanda"),
                tables=hundredths(layout),
                centre=on_grid(layout, np.full(len(layout), TARGET)),
            )
            self._supernet = build_supernet(
                self.session.subject, self.session.text["calibration"], plan
            )
        return self._supernet

    def measured(self) -> np.ndarray:
        """Return the divergence of each random profile, in nats a token."""
        file = self.out / "random.json"
        known: list[float] = json.loads(file.read_text()) if file.exists() else []
        if len(known) < PROFILES:
            model, text = self.session.loaded.model, self.session.text["heldout"]
            proxy = EVALUATORS.create("kl_divergence").bind(model, text)
            profiles = random_profiles(self.session.subject.layout)
            supernet = self.supernet
            with supernet.resident() as switch:
                for profile in profiles[len(known) :]:
                    switch.to(profile)
                    known.append(proxy.score(model, range(len(text))).value)
                    write_json(file, known)
        return np.array(known)

    def scores_file(self, name: str) -> Path:
        """Return the file of an estimate's scores; they are measured if need be."""
        file = self.out / f"{slug(name)}.json"
        if not file.exists():
            settings = {"name": name.partition(",")[0], **ESTIMATES[name]}
            pruner = Factory().resolve(PRUNERS, settings.pop("pruner", "wanda"))
            measurer = ALLOCATORS.create("knapsack", sensitivity=settings, pruner=pruner)
            subject, text = self.session.subject, self.session.text["calibration"]
            counts = build_count_tables(subject.layout, LEVELS)
            started = time.process_time()
            scores = measurer.sensitivity.measure(subject, text, pruner, counts)
            write_json(self.out / f"{slug(name)}-cost.json", time.process_time() - started)
            save_scores(file, scores)
        return file

    def along_the_path(self) -> tuple[list[tuple[int, ...]], list[list[float]]]:
        """Return counts, and the change predicted there at the uniform profile, by unit."""
        file = self.out / "around-uniform.json"
        layout = self.session.subject.layout
        grid = hundredths(layout)
        counts = [tuple(table[round(100 * level)] for level in LEVELS) for table in grid]
        if not file.exists():
            text = self.session.text["calibration"][:8, :512]
            started = time.process_time()
            divergence = DivergenceExpansion(self.session.subject, text, 128, 0)
            with self.supernet.resident() as switch:
                switch.to(on_grid(layout, np.full(len(layout), TARGET)))
                _, recordings = divergence.recorded()
                losses = [
                    [
                        divergence.change(u.name, switch.change(u.name, count), recordings)
                        for count in table
                    ]
                    for u, table in zip(layout, counts, strict=True)
                ]
            write_json(self.out / "around-uniform-cost.json", time.process_time() - started)
            write_json(file, losses)
        found: list[list[float]] = json.loads(file.read_text())
        return counts, found

    def perplexity(self, name: str, profile: SparsityProfile, pruner_name: str) -> float:
        """Return the perplexity after sequential pruning to a profile."""
        file = self.out / f"ppl-{slug(name)}-{slug(pruner_name)}.json"
        if not file.exists():
            pruner = Factory().resolve(PRUNERS, pruner_name)
            subject, text = self.session.subject, self.session.text["calibration"]
            model, test = self.session.loaded.model, self.session.text["test"]
            with subject.preserved():
                prune_sequentially(subject, profile, pruner, text)
                proxy = EVALUATORS.create("perplexity").bind(model, test)
                write_json(file, proxy.score(model, range(len(test))).value)
        return float(json.loads(file.read_text()))


def _session(arguments: argparse.Namespace) -> Session:
    options = {
        "model.name": "smollm2",
        "data.calibration": f"file:{arguments.calibration}",
        "data.calibration_sequences": 32,
    }
    requests = [
        request_calibration(load_config(None, options).data),
        Request("heldout", f"file:{arguments.heldout}", 4, 512),
        Request("test", f"file:{arguments.test}", 40, 1024),
    ]
    return open_session(load_config(None, options).model, requests, 0, Monitor())


def rows(bench: Bench, wanted: Sequence[str], pruners: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of the table: estimate, CPU seconds, tau, perplexity by pruner."""
    measured = bench.measured()
    layout = bench.session.subject.layout
    profiles = random_profiles(layout)
    bounds, budget = Bounds.of(layout), Budget(TARGET)
    found = []
    for name in wanted:
        scores = load_scores(bench.scores_file(name))
        cost = json.loads((bench.out / f"{slug(name)}-cost.json").read_text())
        plugins = {name: ALLOCATORS.create("knapsack")}
        predicted = {name: [scores.loss(profile) for profile in profiles]}
        if scores.pairs is not None:
            for shrink in (0.25, 0.5, 1.0):
                label = f"{name} x {shrink}"
                plugins[label] = ALLOCATORS.create("knapsack", use_pairs=True, shrink=shrink)
                predicted[label] = [plugins[label].predict(scores, p) for p in profiles]
        for label, plugin in plugins.items():
            profile = plugin.solve(scores, budget, bounds)
            tau = kendalltau(predicted[label], measured).statistic
            figures = {pruner: bench.perplexity(label, profile, pruner) for pruner in pruners}
            found.append(
                {"estimate": label, "cpu_seconds": cost, "tau": tau, "perplexity": figures}
            )
            show(found[-1], pruners)
    return found


def show(row: Mapping[str, Any], pruners: Sequence[str]) -> None:
    figures = [row["perplexity"].get(pruner) for pruner in pruners]
    cells = [row["estimate"], f"{row['cpu_seconds']:.0f}", f"{row['tau']:.2f}"]
    cells += ["-" if figure is None else f"{figure:.1f}" for figure in figures]
    print("| " + " | ".join(cells) + " |", flush=True)


def around_uniform(bench: Bench) -> dict[str, Any]:
    """Return the row of the gradients taken at the uniform profile."""
    measured, profiles = bench.measured(), random_profiles(bench.session.subject.layout)
    counts, losses = bench.along_the_path()
    curves = [PchipInterpolator(c, loss) for c, loss in zip(counts, losses, strict=True)]
    predicted = [
        sum(float(curve(count)) for curve, count in zip(curves, profile.removed, strict=True))
        for profile in profiles
    ]
    cost = json.loads((bench.out / "around-uniform-cost.json").read_text())
    tau = kendalltau(predicted, measured).statistic
    return {"estimate": GRADIENTS, "cpu_seconds": cost, "tau": tau, "perplexity": {}}


def table_of(bench: Bench, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the rows, and the measurements that `benchmarks/predictor.py` reads.

    ``losses`` has the losses of each unit at `LEVELS`; ``divergences`` those of each profile.
    """
    fisher = load_scores(bench.scores_file("fisher"))
    losses = {
        "fisher": [unit.tolist() for unit in fisher.losses],
        GRADIENTS: bench.along_the_path()[1],
    }
    return {"rows": found, "divergences": bench.measured().tolist(), "losses": losses}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("calibration", "heldout", "test", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--table", type=Path, help="write the table of all cases in --out here")
    parser.add_argument("--estimates", nargs="*", default=list(ESTIMATES))
    parser.add_argument("--pruners", nargs="*", default=["wanda", "sparsegpt"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments)
    print("| estimate | CPU seconds | tau | " + " | ".join(arguments.pruners) + " |", flush=True)
    found = [around_uniform(bench)]
    show(found[0], arguments.pruners)
    found += rows(bench, arguments.estimates, arguments.pruners)
    if arguments.table:
        write_table(arguments.table, table_of(bench, found))


if __name__ == "__main__":
    main()
