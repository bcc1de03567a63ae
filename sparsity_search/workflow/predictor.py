"""A predictor from what a search measured: its data set, and how well it can be predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sparsity_search.config.schema import RunConfig
from sparsity_search.errors import ConfigError, RunMismatchError
from sparsity_search.profiles.budget import Budget
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.runs.directory import JOURNAL, PRICES, read_json
from sparsity_search.runs.record import RunRecord, Stage, load_stages
from sparsity_search.runs.starts import first_space, kept_starts
from sparsity_search.searchers.bases.dataset import Dataset, read_dataset
from sparsity_search.searchers.bases.models import Boosted, ModelSettings, fit
from sparsity_search.searchers.bases.training import (
    Figures,
    RankCorrelation,
    can_fit,
    correlate_ranks,
    drop_failed,
    judge,
    split,
)
from sparsity_search.spaces.files import load_space
from sparsity_search.spaces.levels import SearchSpace
from sparsity_search.spaces.prices import Prices
from sparsity_search.trials.history import Measurement
from sparsity_search.trials.store import profiles
from sparsity_search.utils.files import write_json
from sparsity_search.utils.random import generator

__all__ = ["Learned", "ModelSettings", "learn", "load_model", "space_of"]

#: Share of the pairs that a model is fitted to before it is judged by the others.
TRAIN_SHARE = 0.7
#: Stage, profile and measurement.
_Measured = tuple[int, SparsityProfile, Measurement]


@dataclass(frozen=True, eq=False)
class Learned:
    """What a search's measurements teach.

    Attributes:
        dataset: All that did not fail.
        figures: Of a random share held out, by a model of the others.
        rounds: Of each round, by a model of the rounds before it.
        importance: What xgboost's splits by each gene's level gain, as a share of what all of
            them do, by the name of the gene's first unit; empty for other models.
    """

    dataset: Dataset
    figures: Figures
    rounds: Sequence[RankCorrelation]
    importance: Mapping[str, float] = field(default_factory=dict)


def learn(
    run_dir: Path,
    settings: ModelSettings,
    out: Path | None = None,
    *,
    storage: str | None = None,
    seed: int = 0,
) -> Learned:
    """Judge a predictor on what a search measured, and write its data set.

    Profiles of all stages are described by the levels of the first one's space, those of an
    allocator's settings by the levels that they were rounded to. With trees of xgboost the file
    holds the trees of all pairs too, in xgboost's own JSON.

    Args:
        run_dir: Directory of the run; nothing in it is changed.
        settings: The model.
        out: The file to write, if any.
        storage: URL of the run's storage, needed where ``run.json`` hides a password.
        seed: Of the split and of the trees.

    Raises:
        ConfigError: No run directory, or too few measurements.
        RunMismatchError: A file of the run is corrupt, or its space has changed since.
    """
    record = RunRecord.read(run_dir, storage)
    space = space_of(record, run_dir)
    stages = load_stages(run_dir, storage)
    url = storage or record.config["study"].get("storage") or run_dir / JOURNAL
    of_settings = record.parametric
    measured = _of_settings(stages, space, url) if of_settings else _of_levels(stages, space)
    dataset, rounds = _dataset(record, space, measured)
    pairs = dataset.pairs(space)
    train, held_out = split(pairs, TRAIN_SHARE, generator(seed, "split"))
    if not can_fit(train) or not len(held_out):
        raise ConfigError(f"{run_dir} has {len(pairs)} measurements: too few to learn from")
    model = fit(pairs, settings, seed) if settings.model == "xgboost" else None
    if out is not None:
        write_json(out, {**dataset.to_json(), **_model_json(model, settings, space)})
    return Learned(
        dataset,
        judge(fit(train, settings, seed), held_out),
        correlate_ranks(pairs, rounds, settings),
        _importance(model, space, pairs.matrix.shape[1]),
    )


def load_model(path: Path) -> Boosted:
    """Return the trees that `learn` wrote; they predict for the space that their run began with.

    Raises:
        ConfigError: No data set, or it has no trees.
    """
    read_dataset(path)
    value = read_json(path).get("model")
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path} has no trees; write it with --model xgboost")
    return Boosted.from_json(value["members"], rank=value["settings"]["objective"] == "rank")


def space_of(record: RunRecord, run_dir: Path) -> SearchSpace:
    """Return the space that a run searched first; of settings, that of levels below it.

    Args:
        record: Of the run.
        run_dir: Its directory, which has the profiles that it started from.

    Raises:
        RunMismatchError: The configuration or the space file have changed since.
    """
    try:
        config = RunConfig.model_validate(record.config)
    except ValueError as error:
        raise RunMismatchError("run.json is of another version, or corrupt") from error
    file = load_space(config.space).of_levels
    budget = Budget(config.budget.saving or config.budget.target)
    stored = record.run.get(PRICES)
    prices = None if stored is None else Prices.from_json(record.layout, stored)
    space = file.build(record.layout, budget, config.budget.bounds, prices)
    if record.run["fingerprint"].get("space", space.digest) != space.digest:
        raise RunMismatchError(f"the space {config.space!r} is not what it was in the search")
    fingerprint, starts = record.run["fingerprint"], kept_starts(run_dir, record.layout)
    return first_space(space, fingerprint, starts[0]) if starts else space


def _dataset(
    record: RunRecord, space: SearchSpace, measured: Sequence[_Measured]
) -> tuple[Dataset, list[int]]:
    """Return the data set, and the round of each pair."""
    dataset = Dataset(
        layout=space.layout,
        profiles=[profile for _, profile, _ in measured],
        scores=[m.score.value for *_, m in measured],
        fidelities=[m.fidelity for *_, m in measured],
        stages=[number for number, *_ in measured],
        facts=_facts(record, space),
    )
    return dataset, [m.round for *_, m in measured]


def _of_levels(stages: Sequence[Stage], space: SearchSpace) -> list[_Measured]:
    """Return what all stages measured, without failures; the space is that of the first."""
    found: list[_Measured] = []
    for number, stage in enumerate(stages, start=1):
        if number > 1:
            space = _refined(space, stages[number - 2].measurements, stage.study)
        if any(m.candidate not in space for m in stage.measurements):
            raise RunMismatchError("the run holds candidates that are not in its space")
        alive = drop_failed(stage.measurements)
        found += [(number, space.profile(m.candidate), m) for m in alive]
    return found


def _of_settings(
    stages: Sequence[Stage], space: SearchSpace, storage: str | Path
) -> list[_Measured]:
    """Return what was measured of an allocator's settings, with the profiles that they gave.

    Raises:
        ConfigError: These were not recorded.
    """
    found: list[_Measured] = []
    for stage in stages:
        known = profiles(storage, stage.study, space.layout)
        alive = drop_failed(stage.measurements)
        if any(m.candidate not in known for m in alive):
            raise ConfigError(
                "the run holds settings of an allocator without the profiles that they gave: "
                "it is of an earlier version, search anew"
            )
        found += [(1, known[m.candidate], m) for m in alive]
    return found


def _refined(space: SearchSpace, measured: Sequence[Measurement], study: str) -> SearchSpace:
    """Return the space of a stage: around one candidate of the stage before, mostly the best.

    The study's name ends with its digest, so that it need not be guessed.

    Raises:
        RunMismatchError: No candidate has that space.
    """
    order = sorted(measured, key=lambda m: (-m.fidelity.tokens, m.failed, m.score.value))
    for candidate in dict.fromkeys([*(m.candidate for m in order), space.uniform]):
        finer = space.refined(space.profile(candidate))
        if study.endswith(finer.digest):
            return finer
    raise RunMismatchError(f"no candidate is what the study {study!r} was around")


def _facts(record: RunRecord, space: SearchSpace) -> dict[str, Any]:
    config = record.config
    return {
        **{key: config[key] for key in ("model", "budget", "space", "pruner", "evaluator")},
        "space_digest": space.digest,
        "text": record.run.get("text"),
    }


def _importance(model: Any, space: SearchSpace, n_features: int) -> dict[str, float]:
    if not isinstance(model, Boosted):
        return {}
    gains = model.importance(n_features)[: space.n_genes]  # the levels are the first features
    total = gains.sum() or 1.0
    units = [space.layout[gene[0]].name for gene in space.genes]
    return {name: float(gain / total) for name, gain in zip(units, gains, strict=True)}


def _model_json(
    model: Any, settings: ModelSettings, space: SearchSpace
) -> dict[str, dict[str, Any]]:
    if model is None:
        return {}
    facts = {"settings": asdict(settings), "space": space.digest, "members": model.to_json()}
    return {"model": facts}
