"""Measurements in an Optuna study: one measurement is one trial.

The candidate is one attribute, not one parameter for each unit: 210 parameters would cost about
100 ms a trial in a journal, one attribute costs about 1.5 ms. For Optuna's tools, trials of a
space of levels have parameters that people can read: the rung, and the sparsity of each role and
of each sixth of the depth. Trials of a space of parameters have these, and the counts of the
profile, which cannot be computed without the model. Only attributes are read back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from math import inf
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from sparsity_search.errors import RunMismatchError
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.spaces.levels import Candidate
from sparsity_search.spaces.parameters import Parameter
from sparsity_search.spaces.space import Space
from sparsity_search.trials.history import Fidelity, Measurement, Score
from sparsity_search.trials.journal import Journal
from sparsity_search.trials.storages import join_journal, open_database_to_read
from sparsity_search.utils.files import check_fingerprint, compute_digest

FINGERPRINT = "fingerprint"
PROFILE = "profile"
#: Parts of the depth that a trial shows, and the greatest number of a rung.
_PARTS, _RUNGS = 6, 99
#: Attributes of a trial, and the key of the latter that holds a checksum.
_CANDIDATE, _MEASUREMENT, _CHECKSUM = "candidate", "measurement", "checksum"


class Store:
    """The measurements of one run, in an Optuna storage.

    Args:
        storage: An Optuna storage or its URL; `storages.open_journal` makes the default one.
        name: Name of the Optuna study.
        fingerprint: Everything that a measurement depends on, as a flat mapping. A new study
            stores it; an existing one must have the same.
        space: Space of the candidates. If it has parameters, trials hold their values and the
            resulting profile.

    Raises:
        RunMismatchError: The stored study was made with another fingerprint, or a measurement is
            not as it was written.
    """

    def __init__(
        self,
        storage: BaseStorage | str,
        name: str,
        fingerprint: Mapping[str, Any],
        space: Space | None = None,
    ) -> None:
        self._space, self._place = space, _name_place(storage)
        self._study = optuna.create_study(
            storage=storage, study_name=name, direction="minimize", load_if_exists=True
        )
        stored = self._study.user_attrs.get(FINGERPRINT)
        if stored is None:
            self._study.set_user_attr(FINGERPRINT, dict(fingerprint))
        else:
            check_fingerprint(stored, fingerprint, f"study {name!r}")

    def load(self, after: int = 0) -> list[Measurement]:
        """Return the finished measurements by number, without the first ``after``.

        Raises:
            RunMismatchError: One is not as it was written.
        """
        return _read(self._study, self._place, after)

    def add(self, measurement: Measurement) -> None:
        """Record one measurement; a failed one becomes a failed trial."""
        self._study.add_trial(_to_trial(measurement, self._space, self._study.study_name))


def read_measurements(storage: str | Path, name: str) -> list[Measurement]:
    """Return the finished measurements of a study that may still be running; change nothing.

    Args:
        storage: URL of a database, or the path of a journal file that exists.
        name: Name of the Optuna study; the result is empty if there is none.

    Raises:
        RunMismatchError: A measurement is not as it was written.
    """
    study = _load_study(storage, name)
    return [] if study is None else _read(study, _name_place(storage))


def read_profiles(
    storage: str | Path, name: str, layout: Layout
) -> dict[Candidate, SparsityProfile]:
    """Return the profiles of parameters by candidate; failed candidates have none.

    Args:
        storage: URL of a database, or the path of a journal file that exists.
        name: Name of the Optuna study.
        layout: The units.

    Raises:
        ProfileError: The profiles are of another layout.
        RunMismatchError: A measurement is not as it was written.
    """
    study = _load_study(storage, name)
    if study is None:
        return {}
    found = {}
    measurements = _read(study, _name_place(storage))
    for trial, measurement in zip(_list_finished(study), measurements, strict=True):
        if PROFILE in trial.user_attrs:
            facts = trial.user_attrs[PROFILE]
            profile = SparsityProfile(layout, tuple(facts["removed"]), tuple(facts["patterns"]))
            found[measurement.candidate] = profile
    return found


def _load_study(storage: str | Path, name: str) -> optuna.Study | None:
    opened: BaseStorage
    opened = join_journal(storage) if isinstance(storage, Path) else open_database_to_read(storage)
    try:
        return optuna.load_study(study_name=name, storage=opened)
    except KeyError:
        return None


def _read(study: optuna.Study, place: str, after: int = 0) -> list[Measurement]:
    """Return the finished measurements of a study, without the first ``after``, all checked."""
    found = _list_finished(study)[after:]
    return [_to_measurement(trial, study.study_name, place) for trial in found]


def _list_finished(study: optuna.Study) -> list[FrozenTrial]:
    done = (TrialState.COMPLETE, TrialState.FAIL)
    trials = study.get_trials(deepcopy=False, states=done)
    return sorted(trials, key=lambda t: t.number)


def _to_trial(m: Measurement, space: Space | None, study: str) -> FrozenTrial:
    params, distributions = _list_params(m, space) if space else ({}, {})
    trial = create_trial(
        state=TrialState.FAIL if m.failed else TrialState.COMPLETE,
        value=None if m.failed else m.score.value,
        params=params,
        distributions=distributions,
        user_attrs={
            _CANDIDATE: ",".join(map(str, m.candidate)),
            _MEASUREMENT: {
                "round": m.round,
                "rung": m.rung,
                "tokens": m.fidelity.tokens,
                "subset": m.fidelity.subset,
                "parts": [] if m.failed else list(m.score.parts),
                "seconds": m.seconds,
                "elapsed": m.elapsed,
                "worker": m.worker,
            },
            **_realised(m, space),
        },
    )
    trial.user_attrs[_MEASUREMENT][_CHECKSUM] = _compute_checksum(trial, study)
    assert trial.datetime_complete is not None
    trial.datetime_start = trial.datetime_complete - timedelta(seconds=m.seconds)
    return trial


def _list_params(
    m: Measurement, space: Space
) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    """Return what Optuna's tools show of a candidate, with its ranges."""
    if space.parameters:
        distributions = {p.name: _build_distribution(p) for p in space.parameters}
        return space.values(m.candidate), distributions
    profile = space.profile(m.candidate)
    shares = {f"sparsity of {role}": share for role, share in profile.grouped("role").items()}
    shares |= _average_by_depth(profile)
    distributions = {name: FloatDistribution(0.0, 1.0) for name in shares}
    return {"rung": m.rung, **shares}, {"rung": IntDistribution(0, _RUNGS), **distributions}


def _average_by_depth(profile: SparsityProfile) -> dict[str, float]:
    """Return the sparsity of each part of the depth, weighted by size, by its name."""
    n_blocks = profile.layout.n_blocks
    blocks = {block: index for index, block in enumerate(profile.grouped("block"))}
    removed, sizes = [0] * _PARTS, [0] * _PARTS
    for unit, count in zip(profile.layout, profile.removed, strict=True):
        part = blocks[unit.block] * _PARTS // n_blocks
        removed[part] += count * unit.cost
        sizes[part] += unit.size
    return {
        f"sparsity of depth {part + 1}/{_PARTS}": removed[part] / sizes[part]
        for part in range(_PARTS)
        if sizes[part]
    }


def _compute_checksum(trial: FrozenTrial, study: str) -> str:
    """Return a digest of all that is read back of a trial, and of the study that it is in."""
    facts = {k: v for k, v in trial.user_attrs[_MEASUREMENT].items() if k != _CHECKSUM}
    read = [study, trial.value, trial.user_attrs[_CANDIDATE], facts, trial.user_attrs.get(PROFILE)]
    return compute_digest(json.dumps(read, sort_keys=True))  # parts need not be finite


def _realised(m: Measurement, space: Space | None) -> dict[str, Any]:
    """Return the profile of the parameters; empty if they failed, or there are none."""
    if space is None or not space.parameters or m.failed:
        return {}
    profile = space.profile(m.candidate)  # known: it was measured
    return {PROFILE: {"removed": list(profile.removed), "patterns": list(profile.patterns)}}


def _build_distribution(parameter: Parameter) -> BaseDistribution:
    """Return the Optuna distribution of a parameter's values."""
    if parameter.grid == "choices":
        return CategoricalDistribution(parameter.values)
    grid: Any = parameter.values  # numbers, at least two
    low, high = grid[0], grid[-1]
    if parameter.grid == "log":
        return FloatDistribution(low, high, log=True)
    if all(isinstance(value, int) for value in grid):
        return IntDistribution(low, high, step=grid[1] - low)
    return FloatDistribution(low, high)  # a step in floats need not divide the range exactly


def _to_measurement(trial: FrozenTrial, study: str, place: str) -> Measurement:
    """Return the measurement in a trial of a study.

    Raises:
        RunMismatchError: It is not as it was written; names the place.
    """
    try:
        facts = trial.user_attrs[_MEASUREMENT]
        checksum = _compute_checksum(trial, study)
        if facts.get(_CHECKSUM, checksum) != checksum:  # older trials have none
            raise ValueError("another checksum")
        value = inf if trial.value is None else float(trial.value)
        return Measurement(
            round=facts["round"],
            rung=facts["rung"],
            candidate=tuple(int(level) for level in trial.user_attrs[_CANDIDATE].split(",")),
            fidelity=Fidelity(facts["tokens"], facts["subset"]),
            score=Score(value, tuple(facts["parts"])),
            seconds=facts["seconds"],
            elapsed=facts["elapsed"],
            worker=facts.get("worker", 0),  # older trials have none
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunMismatchError(
            f"{place} is damaged: measurement {trial.number} of the study {study!r} is not as it "
            "was written; restore a copy, or delete it to measure everything again"
        ) from error


def _name_place(storage: BaseStorage | str | Path) -> str:
    """Return where a study is, for messages; URLs may hold a password."""
    if isinstance(storage, Journal):
        return str(storage.path)
    return str(storage) if isinstance(storage, Path) else "the storage"
