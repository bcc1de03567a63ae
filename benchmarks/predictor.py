"""How well scores of SmolLM2-135M can be predicted: the table of docs/predictor.md.

Reads the 200 random profiles of 70% that `benchmarks/sensitivities.py` measured on a supernet, and
what it kept of the sensitivities; no model and no text is needed. Models see 70% of the pairs, in
20 random splits, and are judged by the others:

    python benchmarks/predictor.py
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.interpolate import PchipInterpolator
from sensitivities import LEVELS, TARGET, hundredths, random_profiles

from sparsity_search.engine.hints import hint_of
from sparsity_search.profiles.budget import Budget
from sparsity_search.profiles.layout import Layout
from sparsity_search.runs.scores import load_scores
from sparsity_search.searchers.bases.dataset import real_levels
from sparsity_search.searchers.bases.features import Features
from sparsity_search.searchers.bases.models import ModelSettings, Pairs, fit
from sparsity_search.searchers.bases.training import judge, log_scores, split
from sparsity_search.spaces.files import SpaceFile, load_space
from sparsity_search.spaces.hints import Hint
from sparsity_search.spaces.levels import SearchSpace
from sparsity_search.utils.random import generator

RESULTS = Path(__file__).parent / "results"
SPLITS = 20
TRAIN_SHARE = 0.7
#: The trees of the published protocol have the settings of the searcher `gbdt`.
MODELS = {
    "ridge": ModelSettings(),
    "xgboost, as `gbdt`": ModelSettings(model="xgboost", members=1, trees=200, depth=4, rate=0.05),
    "xgboost": ModelSettings(model="xgboost"),
    "sklearn": ModelSettings(model="sklearn"),
}


def space_over(layout: Layout) -> SearchSpace:
    """Return the search's own space."""
    file = load_space("per_linear")
    assert isinstance(file, SpaceFile)
    return file.build(layout, Budget(TARGET), {})


def gradients(space: SearchSpace, folder: Path) -> Hint:
    """Return what gradients at the uniform profile predict for the levels of a space."""
    known = json.loads((folder / "around-uniform.json").read_text())
    losses = []
    for gene, (unit, table) in enumerate(zip(space.layout, known, strict=True)):
        grid = hundredths(space.layout)[space.layout.position(unit.name)]
        curve = PchipInterpolator([grid[round(100 * level)] for level in LEVELS], table)
        span = range(int(space.levels.lower[gene]), int(space.levels.upper[gene]) + 1)
        losses.append(np.array([curve(space.gene_counts(gene, level)[0]) for level in span]))
    return Hint("gradients", space.levels.lower, tuple(losses))


def features(space: SearchSpace, folder: Path) -> Mapping[str, SearchSpace]:
    """Return the space with the hints that features are made from, by name."""
    fisher = hint_of("fisher", load_scores(folder / "fisher.json"), space)
    return {
        "levels": space,
        "with `fisher`": replace(space, hints=(fisher,)),
        "with `gradients`": replace(space, hints=(gradients(space, folder),)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sensitivities", type=Path, default=RESULTS / "sensitivities")
    parser.add_argument(
        "--layout", type=Path, default=RESULTS / "allocators" / "wanda" / "compare.json"
    )
    arguments = parser.parse_args()
    layout = Layout.from_json(json.loads(arguments.layout.read_text())["layout"])
    scores = np.array(json.loads((arguments.sensitivities / "random.json").read_text()))
    space, profiles = space_over(layout), random_profiles(layout)[: len(scores)]
    levels, group = real_levels(space, profiles), np.zeros(len(scores), dtype=np.int64)
    print(f"{len(scores)} pairs, deviation of log scores {log_scores(scores).std():.3f}")
    print("| features | model | R2 | MAE | Kendall tau |\n|---|---|---|---|---|", flush=True)
    for named, hinted in features(space, arguments.sensitivities).items():
        pairs = Pairs(Features(hinted).blocks(levels), log_scores(scores), group)
        for label, settings in MODELS.items():
            found = []
            for seed in range(SPLITS):
                train, held_out = split(pairs, TRAIN_SHARE, generator(seed, "split"))
                judged = judge(fit(train, settings, seed), held_out)
                found.append([judged.r2, judged.mae, judged.tau])
            means, spread = np.mean(found, axis=0), np.std(found, axis=0)
            cells = [f"{m:.2f} ± {s:.2f}" for m, s in zip(means, spread, strict=True)]
            print("| " + " | ".join([named, label, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
