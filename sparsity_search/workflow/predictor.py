"""A predictor from the measurements of a search: its data set, and how well it predicts them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sparsity_search.errors import ConfigError, RunMismatchError
from sparsity_search.profiles.budget import Budget
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.runs.directory import RunDirectory
from sparsity_search.runs.record import RunRecord, StageRecord, find_storage, load_stages
from sparsity_search.runs.stage_spaces import build_stage_spaces
from sparsity_search.searchers.bases.dataset import (
    DATASET_JSON,
    MEASURED_ON,
    Dataset,
    read_dataset,
)
from sparsity_search.searchers.bases.models import BoostedModel, ModelSettings, fit
from sparsity_search.searchers.bases.training import (
    PredictionFigures,
    RankCorrelation,
    can_fit,
    correlate_ranks,
    drop_failed,
    judge,
    split_pairs,
)
from sparsity_search.spaces.files import load_space
from sparsity_search.spaces.levels import SearchSpace
from sparsity_search.trials.history import Measurement
from sparsity_search.trials.store import read_profiles
from sparsity_search.utils.random import create_generator

__all__ = ["ModelSettings", "PredictorReport", "learn", "load_trees", "read_spaces"]

#: Share of the pairs that a model is fitted to before it is judged by the others.
TRAIN_SHARE = 0.7
#: Stage, profile and measurement.
_Measured = tuple[int, SparsityProfile, Measurement]


@dataclass(frozen=True, eq=False)
class PredictorReport:
    """A predictor's data set, and how well it can be predicted.

    Attributes:
        dataset: All that did not fail.
        figures: Of a random share held out, by a model of the others.
        rounds: Of each round, by a model of the rounds before it.
        importance: Gain of xgboost's splits by each gene's level, as a share of the gain of all,
            by the name of the gene's first unit; empty for other models.
    """

    dataset: Dataset
    figures: PredictionFigures
    rounds: Sequence[RankCorrelation]
    importance: Mapping[str, float] = field(default_factory=dict)


def learn(
    run_dir: Path,
    settings: ModelSettings,
    out: Path | None = None,
    *,
    storage: str | None = None,
    seed: int = 0,
) -> PredictorReport:
    """Judge a predictor on the measurements of a search, and write its data set.

    Profiles of all stages are described by the levels of the first one's space, those of an
    allocator's settings by the levels that they were rounded to. With trees of xgboost the file
    holds the trees of all pairs too, in xgboost's own JSON.

    Args:
        run_dir: Directory of the run; nothing in it is changed.
        settings: The model.
        out: The file to write, if any.
        storage: URL of the run's database, if it has one.
        seed: Seed of the split and of the trees.

    Raises:
        ConfigError: No run directory, or too few measurements.
        RunMismatchError: A file of the run is corrupt, or its space has changed since.
    """
    record = RunRecord.read(run_dir, storage)
    directory = RunDirectory(run_dir)
    stages, spaces = load_stages(run_dir, storage), read_spaces(directory)
    space = spaces[0]
    if record.parametric:
        measured = _match_settings(stages, space, find_storage(directory, storage))
    else:
        measured = _match_levels(stages, spaces)
    dataset, rounds = _build_dataset(record, space, measured)
    pairs = dataset.pairs(space)
    train, held_out = split_pairs(pairs, TRAIN_SHARE, create_generator(seed, "split"))
    if not can_fit(train) or not len(held_out):
        raise ConfigError(f"{run_dir} has {len(pairs)} measurements: too few to learn from")
    model = fit(pairs, settings, seed) if settings.model == "xgboost" else None
    if out is not None:
        DATASET_JSON.write(out, {**dataset.to_json(), **_export_model(model, settings, space)})
    return PredictorReport(
        dataset,
        judge(fit(train, settings, seed), held_out),
        correlate_ranks(pairs, rounds, settings),
        _measure_importance(model, space, pairs.matrix.shape[1]),
    )


def load_trees(path: Path) -> BoostedModel:
    """Return the trees that `learn` wrote; they predict for the space that their run began with.

    Raises:
        ConfigError: No data set, or it has no trees.
    """
    read_dataset(path)
    value = DATASET_JSON.read(path).get("model")
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path} has no trees; write it with --model xgboost")
    return BoostedModel.from_json(value["members"], rank=value["settings"]["objective"] == "rank")


def read_spaces(directory: RunDirectory) -> list[SearchSpace]:
    """Return the space of each stage of a run; of settings, that of levels below it.

    Raises:
        RunMismatchError: The configuration or the space file have changed since.
    """
    facts, config = directory.read_facts(), directory.read_config()
    layout = Layout.from_json(facts["layout"])
    file = load_space(config.space).of_levels
    budget = Budget(config.budget.saving or config.budget.target)
    prices, hidden_size = directory.read_prices(layout), facts.get("hidden_size")
    space = file.build(layout, budget, config.budget.bounds, prices, hidden_size)
    if facts["fingerprint"].get("space", space.digest) != space.digest:
        raise RunMismatchError(f"the space {config.space!r} is not what it was in the search")
    return build_stage_spaces(space, facts["fingerprint"], directory.read_starts(layout))


def _build_dataset(
    record: RunRecord, space: SearchSpace, measured: Sequence[_Measured]
) -> tuple[Dataset, list[int]]:
    """Return the data set, and the round of each pair."""
    dataset = Dataset(
        layout=space.layout,
        profiles=[profile for _, profile, _ in measured],
        scores=[m.score.value for *_, m in measured],
        fidelities=[m.fidelity for *_, m in measured],
        stages=[number for number, *_ in measured],
        facts=_describe(record, space),
    )
    return dataset, [m.round for *_, m in measured]


def _match_levels(stages: Sequence[StageRecord], spaces: Sequence[SearchSpace]) -> list[_Measured]:
    """Return the measurements of all stages with their profiles, without failures.

    Raises:
        RunMismatchError: A stage's space is not recorded, or lacks a candidate.
    """
    found: list[_Measured] = []
    for number, stage in enumerate(stages, start=1):
        if number > len(spaces):
            raise RunMismatchError(
                f"the run does not say where its stage {number} started: it is of an earlier "
                "version, search anew"
            )
        space = spaces[number - 1]
        if number > 1 and not stage.study.endswith(space.digest):
            raise RunMismatchError(f"the study {stage.study!r} is of another space")
        if any(m.candidate not in space for m in stage.measurements):
            raise RunMismatchError("the run holds candidates that are not in its space")
        alive = drop_failed(stage.measurements)
        found += [(number, space.profile(m.candidate), m) for m in alive]
    return found


def _match_settings(
    stages: Sequence[StageRecord], space: SearchSpace, storage: str | Path
) -> list[_Measured]:
    """Return the measurements of an allocator's settings, with the profiles that these gave.

    Raises:
        ConfigError: These were not recorded.
    """
    found: list[_Measured] = []
    for stage in stages:
        known = read_profiles(storage, stage.study, space.layout)
        alive = drop_failed(stage.measurements)
        if any(m.candidate not in known for m in alive):
            raise ConfigError(
                "the run holds settings of an allocator without the profiles that they gave: "
                "it is of an earlier version, search anew"
            )
        found += [(1, known[m.candidate], m) for m in alive]
    return found


def _describe(record: RunRecord, space: SearchSpace) -> dict[str, Any]:
    config = record.config
    return {
        **{key: config[key] for key in ("model", "budget", "space", "pruner", "evaluator")},
        "space_digest": space.digest,
        "text": record.run.get("text"),
        MEASURED_ON: record.run.get("model", {}),
    }


def _measure_importance(model: Any, space: SearchSpace, n_features: int) -> dict[str, float]:
    if not isinstance(model, BoostedModel):
        return {}
    gains = model.importance(n_features)[: space.n_genes]  # the levels are the first features
    total = gains.sum() or 1.0
    units = [space.layout[gene[0]].name for gene in space.genes]
    return {name: float(gain / total) for name, gain in zip(units, gains, strict=True)}


def _export_model(
    model: Any, settings: ModelSettings, space: SearchSpace
) -> dict[str, dict[str, Any]]:
    if model is None:
        return {}
    facts = {"settings": asdict(settings), "space": space.digest, "members": model.to_json()}
    return {"model": facts}
