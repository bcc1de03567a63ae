"""Models of scores: ridge regression, and boosted trees. Deterministic, one thread."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from sparsity_search.errors import ConfigError
from sparsity_search.utils.extras import require

Kind = Literal["ridge", "xgboost", "sklearn"]
Objective = Literal["rank", "regression"]
KINDS = ("ridge", "xgboost", "sklearn")
OBJECTIVES = ("rank", "regression")

#: Ratios of a ridge's prior variance to its noise variance; the likeliest is taken.
_RATIOS = 10.0 ** np.arange(-3, 5.5, 0.5)


@dataclass(frozen=True, eq=False)
class TrainingPairs:
    """Candidates and their scores, to which a model is fitted.

    Attributes:
        blocks: Features, see `Features.blocks`; ``(n, n_columns)`` each.
        scores: ``(n,)`` float64, finite; lower is better.
        groups: A number for each fidelity, ``(n,)`` int64. Only scores of one group may be
            compared.
    """

    blocks: Mapping[str, np.ndarray]
    scores: np.ndarray
    groups: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, rows: np.ndarray) -> TrainingPairs:
        blocks = {name: block[rows] for name, block in self.blocks.items()}
        return TrainingPairs(blocks, self.scores[rows], self.groups[rows])

    @property
    def matrix(self) -> np.ndarray:
        """All features, ``(n, n_features)``."""
        return np.concatenate(list(self.blocks.values()), axis=1)


class FittedModel(Protocol):
    """A fitted model of scores."""

    def predict(self, blocks: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return predicted scores, lower is better, and their spread, ``(n,)`` each.

        The scale is the model's own. It leaves out the offset of a fidelity.
        """


def fit(pairs: TrainingPairs, settings: ModelSettings, seed: int) -> FittedModel:
    """Fit a model of the settings' kind to at least two pairs, and return it."""
    return (
        RidgeModel.fit(pairs)
        if settings.model == "ridge"
        else BoostedModel.fit(pairs, settings, seed)
    )


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The kind of a model, and the growth of its trees.

    Args:
        model: ``"ridge"``, or trees of ``"xgboost"`` or ``"sklearn"``.
        objective: For xgboost: ``"rank"`` for pairs within a group (``rank:pairwise``), or
            ``"regression"``.
        members: Models of an ensemble of trees, each of a random four fifths of the pairs.
        trees: Boosting rounds.
        depth: Greatest depth of a tree.
        rate: Learning rate.

    Raises:
        ConfigError: A setting is out of range.
        MissingExtraError: The extra ``predictors`` is needed and not installed.
    """

    model: Kind = "ridge"
    objective: Objective = "regression"
    members: int = 5
    trees: int = 100
    depth: int = 3
    rate: float = 0.1

    def __post_init__(self) -> None:
        if self.model not in KINDS:
            raise ConfigError(f"model must be one of {', '.join(KINDS)}, not {self.model!r}")
        if self.objective not in OBJECTIVES:
            raise ConfigError(f"objective must be 'rank' or 'regression', not {self.objective!r}")
        for name in ("members", "trees", "depth"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.rate <= 1:
            raise ConfigError(f"rate must lie in (0, 1], not {self.rate}")
        if self.model != "ridge":
            require(f"model={self.model}", "predictors", self.model)


@dataclass(frozen=True, eq=False)
class RidgeModel:
    """Ridge regression on all features and the squares of the levels, in closed form.

    The weights are the mean of a Gaussian posterior. The ratio of prior to noise maximises the
    marginal likelihood (MacKay, Neural Computation 1992). All blocks of features have the same
    total prior variance. Columns of a block keep their scales, so that a level of a gene that
    seldom moved means as much as a level of another.
    """

    centre: np.ndarray
    scales: Mapping[str, float]
    weights: np.ndarray
    axes: np.ndarray
    shrink: np.ndarray
    ratio: float
    noise: float

    @classmethod
    def fit(cls, pairs: TrainingPairs) -> RidgeModel:
        """Return the regression. Every group has an offset of its own."""
        blocks = _add_squares(pairs.blocks)
        scales = {name: float(np.sqrt(block.var(axis=0).sum())) for name, block in blocks.items()}
        x = _scale(blocks, scales)
        centre, y = x.mean(axis=0), pairs.scores
        within, targets = (
            centre_groups(x, pairs.groups),
            centre_groups(y[:, None], pairs.groups)[:, 0],
        )
        axes, variances = _decompose(within)
        along = axes.T @ (within.T @ targets)
        free = len(y) - len(np.unique(pairs.groups))
        ratio, noise = _maximise_evidence(along, variances, float(targets @ targets), free)
        shrink = ratio / (1 + ratio * variances)
        return cls(centre, scales, axes @ (shrink * along), axes, shrink, ratio, noise)

    def predict(self, blocks: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return the posterior's mean and deviation, ``(n,)`` each."""
        x = _scale(_add_squares(blocks), self.scales) - self.centre
        seen = np.square(x @ self.axes)
        variance = self.ratio * np.square(x).sum(axis=1) - seen @ (self.ratio - self.shrink)
        return x @ self.weights, np.sqrt(self.noise * np.maximum(variance, 0))


@dataclass(frozen=True, eq=False)
class BoostedModel:
    """An ensemble of boosted trees; the spread is the members' deviation."""

    members: Sequence[Any]
    sign: float = 1.0

    @classmethod
    def fit(cls, pairs: TrainingPairs, settings: ModelSettings, seed: int) -> BoostedModel:
        """Return the ensemble. A single member sees all pairs, several see four fifths each."""
        rank = settings.model == "xgboost" and settings.objective == "rank"
        x, y = pairs.matrix, centre_groups(pairs.scores[:, None], pairs.groups)[:, 0]
        rng = np.random.default_rng(seed)
        members = []
        for _ in range(settings.members):
            rows = np.arange(len(y))
            if settings.members > 1:
                rows = np.sort(rng.permutation(len(y))[: max(2, round(0.8 * len(y)))])
            rows = rows[np.argsort(pairs.groups[rows], kind="stable")]
            drawn = int(rng.integers(2**31))
            if settings.model == "sklearn":
                members.append(_fit_sklearn(x[rows], y[rows], settings, drawn))
            else:
                members.append(_fit_xgboost(x[rows], y[rows], pairs.groups[rows], settings, drawn))
        return cls(members, -1.0 if rank else 1.0)

    def predict(self, blocks: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and deviation over the members, ``(n,)`` each."""
        x = np.concatenate(list(blocks.values()), axis=1)
        predicted = self.sign * np.array([_predict(member, x) for member in self.members])
        return predicted.mean(axis=0), predicted.std(axis=0)

    def importance(self, n_features: int) -> np.ndarray:
        """Return the total gain of xgboost's splits by each feature, ``(n_features,)``."""
        gains = np.zeros(n_features)
        for member in self.members:
            for name, gain in member.get_score(importance_type="total_gain").items():
                gains[int(name[1:])] += gain
        return gains

    def to_json(self) -> list[Any]:
        """Return xgboost's own JSON of each member."""
        return [json.loads(member.save_raw("json").decode()) for member in self.members]

    @classmethod
    def from_json(cls, value: Sequence[Any], *, rank: bool) -> BoostedModel:
        """Return the ensemble that `to_json` described."""
        import xgboost

        members = [xgboost.Booster() for _ in value]
        for member, stored in zip(members, value, strict=True):
            member.load_model(bytearray(json.dumps(stored).encode()))
        return cls(members, -1.0 if rank else 1.0)


def _fit_xgboost(
    x: np.ndarray, y: np.ndarray, groups: np.ndarray, settings: ModelSettings, seed: int
) -> Any:
    import xgboost

    rank = settings.objective == "rank"
    data = xgboost.DMatrix(x, label=_rank_relevance(y, groups) if rank else y, nthread=1)
    parameters: dict[str, Any] = {
        "objective": "rank:pairwise" if rank else "reg:squarederror",
        "tree_method": "hist",
        "max_bin": 64,
        "max_depth": settings.depth,
        "eta": settings.rate,
        "subsample": 0.8,
        "colsample_bytree": 0.5,
        "nthread": 1,
        "device": "cpu",
        "seed": seed,
    }
    if rank:
        data.set_group(np.unique(groups, return_counts=True)[1])
        parameters |= {"lambdarank_pair_method": "mean", "lambdarank_num_pair_per_sample": 8}
    return xgboost.train(parameters, data, num_boost_round=settings.trees)


def _fit_sklearn(x: np.ndarray, y: np.ndarray, settings: ModelSettings, seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingRegressor
    from threadpoolctl import threadpool_limits

    model = HistGradientBoostingRegressor(
        max_iter=settings.trees,
        max_depth=settings.depth,
        learning_rate=settings.rate,
        max_bins=64,
        min_samples_leaf=5,
        early_stopping=False,
        random_state=seed,
    )
    with threadpool_limits(1):
        return model.fit(x, y)


def _predict(member: Any, x: np.ndarray) -> np.ndarray:
    if hasattr(member, "inplace_predict"):
        return np.asarray(member.inplace_predict(x), dtype=np.float64)
    return np.asarray(member.predict(x), dtype=np.float64)


def _rank_relevance(y: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return ranks within groups, the best (lowest) score highest."""
    ranks = np.empty(len(y))
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        ranks[rows] = np.unique(-y[rows], return_inverse=True)[1]
    return ranks


def _add_squares(blocks: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {**blocks, "squares": np.square(blocks["levels"])}


def _scale(blocks: Mapping[str, np.ndarray], scales: Mapping[str, float]) -> np.ndarray:
    """Return blocks side by side, each of unit total variance, or 0 if it has no variance."""
    return np.concatenate(
        [blocks[n] / s if s > 0 else 0 * blocks[n] for n, s in scales.items()], 1
    )


def centre_groups(x: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return rows minus the mean of their group."""
    _, index, counts = np.unique(groups, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), x.shape[1]))
    np.add.at(sums, index, x)
    return np.asarray(x - (sums / counts[:, None])[index])


def _decompose(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the right singular vectors ``(n_features, r)`` and squared singular values ``(r,)``.

    They are computed from the smaller of the two products of ``x`` with itself.
    """
    wide = x.shape[1] > x.shape[0]
    values, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    kept = values > 1e-10 * max(float(values[-1]), 1e-300)
    values, vectors = values[kept], vectors[:, kept]
    return (x.T @ vectors / np.sqrt(values) if wide else vectors), values


def _maximise_evidence(
    along: np.ndarray, variances: np.ndarray, total: float, free: int
) -> tuple[float, float]:
    """Return the likeliest ratio of prior to noise variance, and its noise variance.

    Args:
        along: Product of features and targets along each axis, ``(r,)``.
        variances: Squared singular values, ``(r,)``.
        total: Sum of squares of the targets.
        free: Degrees of freedom of the targets.
    """
    energy = np.square(along) / variances
    rest, n = max(total - float(energy.sum()), 0.0), max(free, 1)
    best = (np.inf, 0.0, 0.0)
    for ratio in _RATIOS:
        growth = 1 + ratio * variances
        noise = max((float((energy / growth).sum()) + rest) / n, 1e-300)
        cost = n * np.log(noise) + float(np.log(growth).sum())
        best = min(best, (cost, float(ratio), noise))
    return best[1:]
