"""How well scores of SmolLM2-135M can be predicted: the table of docs/predictor.md.

Reads the 200 random profiles of 70% that `benchmarks/sensitivities.py` measured on a supernet, and
the losses of two sensitivities, from its table; no model and no text is needed. Models see 70% of
the pairs, in 20 random splits, and are judged by the others:

    python benchmarks/predictor.py
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.interpolate import PchipInterpolator
from sensitivities import GRADIENTS, LEVELS, TARGET, hundredths, random_profiles
from tables import RESULTS, known_layout, read_table

from sparsity_search.engine.hints import predict_hint
from sparsity_search.profiles.budget import Budget
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.scores import Scores, build_count_tables
from sparsity_search.searchers.bases.features import Features
from sparsity_search.searchers.bases.models import ModelSettings, TrainingPairs, fit
from sparsity_search.searchers.bases.training import judge, log_scores, split_pairs
from sparsity_search.spaces.files import SpaceFile, load_space
from sparsity_search.spaces.hints import Hint
from sparsity_search.spaces.levels import SearchSpace
from sparsity_search.utils.random import create_generator

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


def gradients(space: SearchSpace, known: Sequence[Sequence[float]]) -> Hint:
    """Return the losses that gradients at the uniform profile predict for a space's levels."""
    losses = []
    for gene, (unit, table) in enumerate(zip(space.layout, known, strict=True)):
        grid = hundredths(space.layout)[space.layout.position(unit.name)]
        curve = PchipInterpolator([grid[round(100 * level)] for level in LEVELS], table)
        span = space.limits.of(gene)
        losses.append(np.array([curve(space.gene_counts(gene, level)[0]) for level in span]))
    return Hint("gradients", space.limits.lower, tuple(losses))


def features(
    space: SearchSpace, losses: Mapping[str, Sequence[Sequence[float]]]
) -> Mapping[str, SearchSpace]:
    """Return the space with the hints that features are made from, by name."""
    counts = tuple(np.array(table) for table in build_count_tables(space.layout, LEVELS))
    scores = Scores(space.layout, counts, tuple(np.array(unit) for unit in losses["fisher"]))
    fisher = predict_hint("fisher", scores, space)
    return {
        "levels": space,
        "with `fisher`": space.with_hints([fisher]),
        "with `gradients`": space.with_hints([gradients(space, losses[GRADIENTS])]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, default=RESULTS / "sensitivities.json")
    known = read_table(parser.parse_args().table)
    layout, scores = known_layout(), np.array(known["divergences"])
    space, profiles = space_over(layout), random_profiles(layout)[: len(scores)]
    levels, group = space.real_levels(profiles), np.zeros(len(scores), dtype=np.int64)
    print(f"{len(scores)} pairs, deviation of log scores {log_scores(scores).std():.3f}")
    print("| features | model | R2 | MAE | Kendall tau |\n|---|---|---|---|---|", flush=True)
    for named, hinted in features(space, known["losses"]).items():
        pairs = TrainingPairs(Features(hinted).blocks(levels), log_scores(scores), group)
        for label, settings in MODELS.items():
            found = []
            for seed in range(SPLITS):
                train, held_out = split_pairs(pairs, TRAIN_SHARE, create_generator(seed, "split"))
                judged = judge(fit(train, settings, seed), held_out)
                found.append([judged.r2, judged.mae, judged.tau])
            means, spread = np.mean(found, axis=0), np.std(found, axis=0)
            cells = [f"{m:.2f} ± {s:.2f}" for m, s in zip(means, spread, strict=True)]
            print("| " + " | ".join([named, label, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
