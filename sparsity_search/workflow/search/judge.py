"""The judge of a search: profiles pruned as they would be shipped, scored on the final text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sparsity_search.engine.job import SearchJob
from sparsity_search.interfaces.evaluator import split_batches
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.models.running.prefix_cache import PrefixCache
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.registry import EVALUATORS
from sparsity_search.spaces.levels import SearchSpace
from sparsity_search.trials.ladder import is_worse


@dataclass(frozen=True)
class Verdict:
    """The figures of a candidate on the final text.

    Attributes:
        row: One row of the table of results; numbers that are not finite are None.
        parts: Score of each sequence, or of each row of an evaluator's own data.
    """

    row: Mapping[str, Any]
    parts: Sequence[float]

    @property
    def score(self) -> float:
        """The score; infinite if it is not a number."""
        value = self.row["score"]
        return math.inf if value is None else float(value)

    def beats(self, other: Verdict, confidence: float | None) -> bool:
        """Whether this candidate is better than another one.

        Args:
            other: The other one.
            confidence: Of a paired one-sided t-test over the sequences; None compares means.
        """
        if not self.score < other.score:
            return False
        if confidence is None or not math.isfinite(other.score):
            return True
        return is_worse(other.parts, self.parts, confidence)


@dataclass(frozen=True)
class Pruned:
    """A pruned model.

    Attributes:
        verdict: Its figures.
        weights: Weights of the units by name.
        notes: The pruner's remarks.
    """

    verdict: Verdict
    weights: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    notes: Sequence[str] = ()


class Judge:
    """Prunes candidates as they would be shipped, and scores them on the final text.

    No step of a search sees this text.
    """

    def __init__(self, job: SearchJob) -> None:
        self._job = job
        self._limit = job.config.supernet.prefix_mib * 2**20
        text, own = job.session.text, job.plugins.evaluator.own_data()
        n_rows, length = text["final"].shape
        # of an evaluator's own data, the rows that the search did not see
        first = 0 if own is None else job.pool[0]
        model = job.session.loaded.model
        self._batches = [
            (batch, [first + row for row in batch])
            for batch in split_batches(model, range(n_rows), length)
        ]
        with job.monitor.step("bind final text"):
            self._proxies = {
                key: evaluator.bind(model, text["final"], job.session.loaded.tokenizer)
                for key, evaluator in {
                    "score": job.plugins.evaluator,
                    "perplexity": EVALUATORS.create("perplexity"),
                }.items()
            }

    def score_dense(self) -> Verdict:
        """Return the figures of the dense model, which is in memory."""
        return self._score("dense", self._job.session.subject.zeros())

    def prune(self, name: str, profile: SparsityProfile, pruner: Pruner) -> Pruned:
        """Prune the model to a profile block by block, score it, and restore it.

        Args:
            name: Name of the candidate.
            profile: Its profile.
            pruner: Its pruner.
        """
        job, subject = self._job, self._job.session.subject
        with subject.preserved():
            with job.monitor.step(f"rebuild {name}", len(subject.blocks)) as advance:
                notes = prune_sequentially(
                    subject,
                    profile,
                    pruner,
                    job.session.text["calibration"],
                    seed=job.config.study.seed,
                    refresh=job.config.data.refresh,
                    on_block=advance,
                )
            return Pruned(self._score(name, profile), subject.snapshot(), notes)

    def _score(self, name: str, profile: SparsityProfile) -> Verdict:
        with self._job.monitor.step(f"score {name}"):
            values, parts = self._measure(profile)
        row: dict[str, Any] = {"name": name}
        row |= {key: value if math.isfinite(value) else None for key, value in values.items()}
        row |= {"sparsity": profile.sparsity, "removed": profile.n_removed}
        return Verdict({**row, **list_saving(self._job.space, profile)}, parts)

    def _measure(self, profile: SparsityProfile) -> tuple[dict[str, float], list[float]]:
        """Return the score of each proxy, which share the passes, and parts of the first one."""
        parts: dict[str, list[float]] = {key: [] for key in self._proxies}
        for of_text, of_evaluator in self._batches:
            rows = {"score": of_evaluator, "perplexity": of_text}
            # of this batch alone: nothing is shared with others, and counts are not weights
            prefixes = PrefixCache(self._job.session.subject, self._limit)
            with prefixes.at(profile.states) as model:
                for key, proxy in self._proxies.items():
                    parts[key] += proxy.score(model, rows[key]).parts
        values = {key: proxy.combine(parts[key]).value for key, proxy in self._proxies.items()}
        return values, parts["score"]


def list_saving(space: SearchSpace, profile: SparsityProfile) -> dict[str, float]:
    """Return the fraction of the dense units' cost that a profile saves, if the budget is that."""
    if space.in_weights:
        return {}
    return {"saving": int(space.saved(profile).sum()) / space.layout.n_weights}
