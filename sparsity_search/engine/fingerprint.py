"""The identity of a search: everything that its measurements depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sparsity_search.engine.hints import identify_hint
from sparsity_search.engine.job import SearchJob
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.registry import describe
from sparsity_search.runs.stage_spaces import AROUND
from sparsity_search.spaces.levels import SearchSpace
from sparsity_search.utils.files import compute_digest


@dataclass(frozen=True)
class StudyKey:
    """The identity of one stage's study.

    Attributes:
        name: Name of its Optuna study.
        fingerprint: Everything that its measurements depend on, as a flat mapping.
    """

    name: str
    fingerprint: Mapping[str, Any]

    def starting_from(self, starts: Mapping[str, SparsityProfile]) -> StudyKey:
        """Return the key of the study that starts from profiles, given by name."""
        digest = compute_digest([profile.digest for profile in starts.values()])
        return StudyKey(f"{self.name}-{digest}", self.fingerprint)

    def at_stage(self, number: int, space: SearchSpace) -> StudyKey:
        """Return the key of a stage, numbered from 1; this is the key of stage 1."""
        if number == 1:
            return self
        return StudyKey(
            f"{self.name}-stage{number}-{space.digest}",
            {**self.fingerprint, "space": space.digest, "stage": number},
        )


def identify_study(job: SearchJob) -> StudyKey:
    """Return the key of a search's first stage."""
    fingerprint = _fingerprint(job)
    return StudyKey(f"search-{compute_digest(fingerprint)}", fingerprint)


def _fingerprint(job: SearchJob) -> dict[str, Any]:
    config, model, plugins = job.config, job.session.loaded, job.plugins
    text, own = job.session.text_facts, plugins.evaluator.own_data()
    read, parameters = plugins.searcher.data_digest(), job.parameters
    return {
        **model.identity,
        "layout": job.space.layout.digest,
        "space": job.space.digest,
        **({AROUND: "start"} if parameters is None and _lies_around_start(job) else {}),
        **({} if parameters is None else {"parameters": parameters.digest}),
        **{f"text.{purpose}": entry["digest"] for purpose, entry in text.items()},
        "pruner": describe(plugins.pruner),
        "propagate": config.supernet.propagate,
        "refresh": config.data.refresh,
        "searcher": describe(plugins.searcher),
        **({} if read is None else {"searcher.data": read}),
        "evaluator": describe(plugins.evaluator),
        **({} if own is None else {"evaluator.data": own.digest}),
        "initial": [describe(allocator) for allocator in plugins.initial.values()],
        "hints": [identify_hint(name) for name in config.hints],
        "ladder": repr(config.ladder),
        "seed": config.study.seed,
        "dtype": str(model.model.dtype),
        "saved_as": str(model.saved_as),
        "device": model.model.device.type,
        "threads": torch.get_num_threads(),
    }


def _lies_around_start(job: SearchJob) -> bool:
    """Whether the first space of levels lies around the first start."""
    return job.config.supernet.propagate == "start" and job.space.movable
