"""A run directory: the names of its files, and how each is read and written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsity_search.config.schema import RunConfig
from sparsity_search.errors import ConfigError, ProfileError, RunMismatchError, told_of
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import PROFILE_JSON, SparsityProfile
from sparsity_search.runs.redact import STORAGE_VARIABLE
from sparsity_search.runs.shapes import (
    HintShape,
    ResultsShape,
    RunShape,
    StagesShape,
    StartsShape,
)
from sparsity_search.runs.versions import join_versions
from sparsity_search.spaces.hints import Hint
from sparsity_search.spaces.levels import SearchSpace
from sparsity_search.spaces.prices import PRICES_JSON, Prices
from sparsity_search.utils.files import check_fingerprint, lock_folder, make_slug
from sparsity_search.utils.reading import read_json
from sparsity_search.utils.versioned import VersionedJson

#: The file that says how a run was made.
RUN_JSON = VersionedJson("the record of a run", 1, RunShape, RunMismatchError)
#: The file that says how a run ended.
RESULTS_JSON = VersionedJson("the results of a run", 1, ResultsShape, RunMismatchError)
#: The files of what a stage started from, of the stages' studies, and of a hint.
STARTS_JSON = VersionedJson("the starts of a search", 1, StartsShape, RunMismatchError)
STAGES_JSON = VersionedJson("the stages of a search", 1, StagesShape, RunMismatchError)
HINT_JSON = VersionedJson("a hint", 1, HintShape, RunMismatchError)
#: Name of the shipped profile's file, also in the folder of a pruned checkpoint.
PROFILE = "profile.json"
#: File in the folder of a materialised checkpoint, with its profile and figures.
MATERIALISED = "materialised.json"

#: Key of the prices in ``run.json``.
_PRICES = "prices"
#: Name of the study of a run whose ``run.json`` names none.
_STUDY = "search"


@dataclass(frozen=True)
class RunDirectory:
    """The files of one search.

    Attributes:
        path: The folder, which need not exist.
    """

    path: Path

    @classmethod
    def list_finished(cls, folder: Path) -> list[RunDirectory]:
        """Return the finished runs among the folders in ``folder``, sorted by name."""
        return sorted(
            (run for path in folder.glob("*") if (run := cls(path)).results_file.exists()),
            key=lambda run: run.path,
        )

    @property
    def facts_file(self) -> Path:
        """How the run was made: configuration, versions, model, text, fingerprint, layout."""
        return self.path / "run.json"

    @property
    def results_file(self) -> Path:
        """How the run ended."""
        return self.path / "results.json"

    @property
    def profile_file(self) -> Path:
        """The shipped profile, with where it comes from."""
        return self.path / PROFILE

    @property
    def prices_file(self) -> Path:
        """Prices of the units, which other searches can use."""
        return self.path / f"{_PRICES}.json"

    @property
    def journal_file(self) -> Path:
        """The measurements, unless they are in a database."""
        return self.path / "journal.log"

    @property
    def steps_file(self) -> Path:
        """The candidates of the search, step by step."""
        return self.path / "steps.json"

    @property
    def checkpoint_folder(self) -> Path:
        """Folder of the pruned model."""
        return self.path / "checkpoint"

    @property
    def recovered_folder(self) -> Path:
        """Folder of the pruned model after a recovery."""
        return self.path / "recovered"

    @property
    def report_file(self) -> Path:
        """The report."""
        return self.path / "report.html"

    @property
    def artifacts_folder(self) -> Path:
        """Folder of figures for optuna-dashboard."""
        return self.path / "artifacts"

    @property
    def claims_folder(self) -> Path:
        """Folder of the workers' locks."""
        return self.path / ".claims"

    @property
    def _starts_file(self) -> Path:
        return self.path / "starts.json"

    @property
    def _stages_file(self) -> Path:
        return self.path / "stages.json"

    def plot_file(self, name: str) -> Path:
        """Return the file of a figure."""
        return self.path / "plots" / f"{name}.png"

    def supernet_folder(self, stage: int) -> Path:
        """Return the folder of the supernet of a stage, numbered from 1."""
        return self.path / ("supernet" if stage == 1 else f"supernet-stage{stage}")

    def worker_log_file(self, number: int) -> Path:
        """Return the file that a worker's messages go to."""
        return self.path / f"worker-{number}.log"

    def lock(self) -> AbstractContextManager[None]:
        """Own the directory; it is made if need be.

        Raises:
            ConfigError: Another process works there.
        """
        return lock_folder(self.path)

    @property
    def begun(self) -> bool:
        """Whether a run was begun here."""
        return self.facts_file.exists()

    def check_resumable(self, config: RunConfig) -> None:
        """Check, before any work, that a search may start or go on here.

        Raises:
            ConfigError: The folder holds something else.
            RunMismatchError: It holds a run of another configuration; names the differing keys.
        """
        if self.path.is_file():
            raise ConfigError(f"--out {self.path} is a file; name a folder")
        if self.begun:
            stored, what = self.read_config(), f"the run in {self.path}"
            check_fingerprint(stored.identity(), config.identity(), what)
            _check_storage(stored, config, what)
        elif self.path.is_dir() and any(not f.name.startswith(".") for f in self.path.iterdir()):
            raise ConfigError(
                f"--out {self.path} is not empty and holds no run; name another folder"
            )

    def begin(self, facts: Mapping[str, Any], prices: Prices | None = None) -> None:
        """Write ``run.json``, or check that the run that is there has the same fingerprint.

        A run that goes on keeps when and how it was started, and the versions of packages that
        made its measurements; others are added.

        Args:
            facts: Contents of ``run.json``, without credentials.
            prices: Prices of the units, unless the budget is in weights. They go into a file of
                their own too, for other searches.

        Raises:
            RunMismatchError: The fingerprints differ.
        """
        stored_prices = {} if prices is None else {_PRICES: prices.to_json()}
        facts = {**facts, **stored_prices}
        if self.begun:
            stored = self.read_facts()
            what = f"the run in {self.path}"
            check_fingerprint(stored["fingerprint"], facts["fingerprint"], what)
            facts |= {key: stored[key] for key in ("created", "command") if key in stored}
            facts["versions"] = join_versions(stored.get("versions", {}), facts["versions"])
        RUN_JSON.write(self.facts_file, facts)
        if prices is not None:
            PRICES_JSON.write(self.prices_file, facts[_PRICES])

    def read_facts(self) -> dict[str, Any]:
        """Return ``run.json``.

        Raises:
            ConfigError: There is none.
            RunMismatchError: It is corrupt, or of another format.
        """
        if not self.begun:
            raise ConfigError(f"{self.path} is no run directory: it has no {self.facts_file.name}")
        return RUN_JSON.read(self.facts_file)

    def read_config(self) -> RunConfig:
        """Return the configuration of the run.

        Raises:
            ConfigError: There is no run.
            RunMismatchError: ``run.json`` is corrupt, or of another version.
        """
        try:
            return RunConfig.model_validate(self.read_facts()["config"])
        except ValueError as error:
            if isinstance(error, ConfigError | RunMismatchError):
                raise
            raise RunMismatchError(
                f"{self.facts_file} is of another version, or corrupt"
            ) from error

    def read_prices(self, layout: Layout) -> Prices | None:
        """Return the prices of the run's units; None if its budget is in weights.

        Raises:
            ConfigError: They are corrupt, or of other units.
        """
        stored = self.read_facts().get(_PRICES)
        return None if stored is None else Prices.from_json(layout, stored)

    def read_results(self) -> dict[str, Any] | None:
        """Return ``results.json``; None while the run is not finished.

        Raises:
            RunMismatchError: It is corrupt, or of another format.
        """
        if not self.results_file.exists():
            return None
        return RESULTS_JSON.read(self.results_file)

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write ``results.json``."""
        RESULTS_JSON.write(self.results_file, results)

    def withdraw_results(self) -> None:
        """Remove ``results.json``: what it tells of is about to be replaced."""
        self.results_file.unlink(missing_ok=True)

    def read_profiles(self, layout: Layout, shipped: str | None) -> dict[str, SparsityProfile]:
        """Return the profiles that were compared, uniform first and the shipped one last.

        Args:
            layout: The units.
            shipped: Name of the shipped one, which `profile_file` holds; None if the run is
                unfinished.

        Raises:
            ProfileError: A file is corrupt, or of another model; the message names it.
        """
        files = {path.stem: path for path in self._profile_file("*").parent.glob("*.json")}
        if shipped is not None and self.profile_file.exists():
            files[shipped] = self.profile_file
        names = sorted(files, key=lambda name: (name == shipped, name != "uniform", name))
        return {name: _read_profile(files[name], layout) for name in names}

    def write_profile(self, name: str, profile: SparsityProfile) -> None:
        """Write one of the profiles that are compared."""
        PROFILE_JSON.write(self._profile_file(name), profile.to_json())

    def _profile_file(self, name: str) -> Path:
        return self.path / "profiles" / f"{name}.json"

    def read_starts(self, layout: Layout) -> list[dict[str, SparsityProfile]]:
        """Return the profiles that each stage begun so far starts from, by name.

        Raises:
            RunMismatchError: The file is corrupt, or of another model.
        """
        if not self._starts_file.exists():
            return []
        stored = STARTS_JSON.read(self._starts_file)["stages"]
        with told_of(self._starts_file, RunMismatchError):
            return [
                {name: SparsityProfile.from_json(layout, start) for name, start in each.items()}
                for each in stored
            ]

    def read_studies(self) -> list[str]:
        """Return the name of the Optuna study of each stage begun so far.

        Raises:
            RunMismatchError: The file is corrupt.
        """
        names = (
            STAGES_JSON.read(self._stages_file)["studies"] if self._stages_file.exists() else []
        )
        return names or [self.read_facts().get("study", _STUDY)]

    def write_stages(
        self, studies: Sequence[str], starts: Sequence[Mapping[str, SparsityProfile]]
    ) -> None:
        """Record the stages begun so far.

        Args:
            studies: Name of each stage's Optuna study.
            starts: Profiles that each starts from, by name.
        """
        stored = [{name: start.to_json() for name, start in each.items()} for each in starts]
        STARTS_JSON.write(self._starts_file, {"stages": stored})
        STAGES_JSON.write(self._stages_file, {"studies": list(studies)})

    def read_hint(self, stage: int, name: str, space: SearchSpace) -> Hint | None:
        """Return a hint that an earlier session left; None if there is none for this space.

        More rounds may change where a stage starts, and with it the stage's space.

        Args:
            stage: Number of the stage, from 1.
            name: Name of the hint.
            space: Space of the stage.

        Raises:
            RunMismatchError: The file is corrupt.
        """
        file = self._hint_file(stage, name)
        if not file.exists():
            return None
        with told_of(f"{file} is corrupt (remove it)", RunMismatchError):
            stored = HINT_JSON.check(read_json(file))
            if (stored["name"], stored["space"]) != (name, space.digest):
                return None
            levels = [len(space.limits.of(gene)) for gene in range(space.n_genes)]
            losses = tuple(np.array(each, dtype=np.float64) for each in stored["losses"])
            if list(map(len, losses)) != levels:
                raise RunMismatchError("it has not one loss for each level")
        return Hint(name, space.limits.lower, losses)

    def write_hint(self, stage: int, hint: Hint, space: SearchSpace) -> None:
        """Write a hint of a stage, for later sessions and for other workers."""
        losses = [loss.tolist() for loss in hint.losses]
        facts = {"name": hint.name, "space": space.digest, "losses": losses}
        HINT_JSON.write(self._hint_file(stage, hint.name), facts)

    def _hint_file(self, stage: int, name: str) -> Path:
        return self.path / "hints" / f"stage{stage}" / f"{make_slug(name)}.json"


def _check_storage(stored: RunConfig, now: RunConfig, what: str) -> None:
    """Check that a run keeps its measurements where it kept them: elsewhere all are repeated."""
    if (stored.study.storage is None) == (now.study.storage is None):
        return
    was, remedy = "in a database", "give its URL with"
    if stored.study.storage is None:
        was, remedy = "in its folder", "leave out"
    raise RunMismatchError(
        f"{what} keeps its measurements {was}: {remedy} --storage or {STORAGE_VARIABLE}"
    )


def _read_profile(file: Path, layout: Layout) -> SparsityProfile:
    value = PROFILE_JSON.read(file)
    with told_of(file):
        profile = SparsityProfile.from_json(layout, value)
        if value.get("layout", layout.digest) != layout.digest:
            raise ProfileError("it is of another layout than the run")
    return profile
