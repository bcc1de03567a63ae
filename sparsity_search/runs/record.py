"""The record of a run, read from its directory, which is not changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsity_search.errors import (
    ConfigError,
    MissingMeasurementsError,
    ProfileError,
    RunMismatchError,
    SparsitySearchError,
)
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.runs.directory import RunDirectory
from sparsity_search.runs.redact import STORAGE_VARIABLE, redact_url
from sparsity_search.runs.stage_spaces import AROUND, SEARCHED
from sparsity_search.runs.trail import StepRecord, Trail
from sparsity_search.spaces.levels import Candidate
from sparsity_search.trials import store
from sparsity_search.trials.history import Fidelity, History, Measurement
from sparsity_search.utils.extras import require

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Everything that a run directory holds.

    Attributes:
        run: ``run.json``: how the run was made.
        results: ``results.json``: how it ended; None while it is unfinished.
        measurements: Measurements of the search, oldest first.
        missing: Why there are no measurements; None if there are.
        layout: The prunable units.
        profiles: By name, uniform first and the shipped one last.
        allocated: Labels of the profiles that the first stage started from.
        steps: ``steps.json``: the candidates of the search in their order; older runs have none.
        seconds: Time of the whole job over all sessions; 0 for older runs.
    """

    run: Mapping[str, Any]
    results: Mapping[str, Any] | None
    measurements: tuple[Measurement, ...]
    layout: Layout
    profiles: Mapping[str, SparsityProfile]
    allocated: tuple[str, ...] = ()
    steps: tuple[StepRecord, ...] = ()
    seconds: float = 0.0
    missing: str | None = None

    @classmethod
    def read(cls, run_dir: Path, storage: str | None = None) -> RunRecord:
        """Return the record of a run, finished or not.

        Args:
            run_dir: Directory of the run.
            storage: URL of its database, if it has one. It is not read without.

        Raises:
            ConfigError: ``run_dir`` is no run directory, or ``storage`` cannot be read.
            RunMismatchError: A file in it is corrupt, or of another format.
        """
        directory = RunDirectory(run_dir)
        run, results = directory.read_facts(), directory.read_results()
        try:
            layout = Layout.from_json(run["layout"])
            shipped = None if results is None else find_shipped_name(results)
            profiles = directory.read_profiles(layout, shipped)
            starts = directory.read_starts(layout)
            trail = Trail(directory.steps_file, layout)
        except ProfileError as error:
            raise RunMismatchError(f"{run_dir} is corrupt: {error}") from error
        measurements, missing = [], None
        try:
            measurements = load_measurements(run_dir, storage)
        except MissingMeasurementsError as error:
            without_study = trail.records and not starts
            missing = None if without_study else str(error)
        return cls(
            run=run,
            results=results,
            measurements=tuple(measurements),
            missing=missing,
            layout=layout,
            profiles=_select_profiles(profiles, trail.records, shipped),
            allocated=tuple(starts[0]) if starts else (),
            steps=tuple(trail.records),
            seconds=trail.seconds,
        )

    @property
    def history(self) -> History:
        """The measurements of the search."""
        return History(list(self.measurements), fresh=self.fresh)

    def to_frame(self) -> DataFrame:
        """Return a row for each profile of the final comparison, as a table of pandas.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        require("a table", "frames", "pandas")
        from pandas import DataFrame

        return DataFrame((self.results or {}).get("rows", []))

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration, in sections."""
        return self.run["config"]  # type: ignore[no-any-return]

    @property
    def model_name(self) -> str:
        """Name of the model."""
        return str(self.run.get("model", {}).get("name") or self.config["model"]["name"])

    @property
    def secrets(self) -> tuple[str, ...]:
        """The storage's URL, as it is and as a shell-quoted command line has it, to be hidden."""
        storage = self.config["study"].get("storage")
        return (storage, storage.replace("'", "'\"'\"'")) if storage else ()

    @property
    def target(self) -> float:
        """Global sparsity that was asked for; where a saving was, that of the uniform profile."""
        if self.saving is not None:
            return next((profile.sparsity for profile in self.profiles.values()), 0.0)
        return float(self.config["budget"]["sparsity"])

    @property
    def saving(self) -> float | None:
        """Saving that was asked for in place of a sparsity."""
        found = self.config["budget"].get("saving")
        return None if found is None else float(found)

    @property
    def removal(self) -> str:
        """Kind of the budget: ``"sparsity"``, ``"saving"``, or ``"saving of"`` a measure."""
        if self.saving is None:
            return "sparsity"
        prices = self.run.get("prices")
        return f"saving of {prices['measure']}" if prices else "saving"

    @property
    def asked(self) -> float:
        """The sparsity or the saving that was asked for."""
        return self.target if self.saving is None else self.saving

    @property
    def fresh(self) -> bool:
        """Whether each round of the search had its own tokens."""
        return bool(self.config["ladder"].get("fresh", False))

    @property
    def top_rung(self) -> int:
        """Index of the ladder's last rung."""
        return len(self.config["ladder"]["rungs"]) - 1

    @property
    def shipped(self) -> SparsityProfile | None:
        """The profile that the run chose."""
        return None if self.results is None else self.profiles.get(find_shipped_name(self.results))

    @property
    def rebuilt(self) -> set[str]:
        """Names of candidates that have the profile of an earlier one, and another pruner."""
        return {
            step.name
            for index, step in enumerate(self.steps)
            for other in self.steps[:index]
            if step.profile == other.profile and step.pruner != other.pruner
        }

    @property
    def distinct_profiles(self) -> dict[str, SparsityProfile]:
        """The profiles without those of `rebuilt`."""
        return {name: each for name, each in self.profiles.items() if name not in self.rebuilt}

    @property
    def parametric(self) -> bool:
        """Whether candidates were an allocator's settings, and not levels."""
        return "parameters" in self.run.get("fingerprint", {})

    @property
    def starts(self) -> list[str]:
        """Names of the candidates of round 0, in the order they are measured.

        Level 0 comes first: the uniform one, or the first of ``config.initial``; what was read
        from a file has its label, once the run has begun with it. A search over
        an allocator's settings has one alone, the nearest to its default ones.
        """
        if self.parametric:
            return ["default settings"]
        initial = self.allocated or self.config.get("initial", [])
        around_start = AROUND in self.run.get("fingerprint", {})
        names = [*initial, "uniform"] if around_start else ["uniform", *initial]
        return list(dict.fromkeys(names))

    @property
    def initial_scores(self) -> dict[str, float]:
        """Top-rung scores of `starts` by name, on the tokens of round 0.

        If two of them are the same candidate, only the first can be identified by its place.
        """
        names = self.starts
        first = [m for m in self.measurements if m.round == 0]
        if len(first) != len(names):
            names, first = names[:1], first[:1]
        return {n: m.score.value for n, m in zip(names, first, strict=False) if not m.failed}


def load_run(run_dir: Path | str, storage: str | None = None) -> RunRecord:
    """Return the record of a run, finished or not; see `RunRecord.read`."""
    return RunRecord.read(Path(run_dir), storage)


@dataclass(frozen=True, slots=True)
class ScoreTrace:
    """Top-rung scores in the course of a search; one entry each a point.

    Attributes:
        elapsed: Search time in seconds.
        evaluations: Measurements so far, of all rungs.
        tokens: Tokens that these were measured on.
        scores: The best score so far; with fresh tokens, of the round's winner.
    """

    elapsed: tuple[float, ...]
    evaluations: tuple[int, ...]
    tokens: tuple[int, ...]
    scores: tuple[float, ...]


def trace_scores(
    measurements: Sequence[Measurement], top_rung: int, *, fresh: bool = False
) -> ScoreTrace:
    """Return how the best top-rung score fell.

    Args:
        measurements: Oldest first.
        top_rung: Index of the ladder's last rung.
        fresh: Each round had its own tokens, so its scores are comparable within it only: one
            point a round, the score of its winner.
    """
    points: dict[int, tuple[float, int, int, float]] = {}
    best, tokens = float("inf"), 0
    seen: set[tuple[Fidelity, Candidate]] = set()
    round_ = -1
    for number, m in enumerate(measurements, start=1):
        key = (m.fidelity, m.candidate)
        tokens += m.fidelity.tokens
        if m.rung != top_rung or m.failed or key in seen:
            continue
        seen.add(key)
        if fresh and m.round != round_:
            round_, best = m.round, float("inf")
        best = min(best, m.score.value)
        points[m.round if fresh else number] = (m.elapsed, number, tokens, best)
    if not points:
        return ScoreTrace((), (), (), ())
    return ScoreTrace(*zip(*points.values(), strict=True))


def load_measurements(run_dir: Path, storage: str | None = None) -> list[Measurement]:
    """Return the measurements of a run so far; nothing is changed or made.

    Args:
        run_dir: Directory of the run.
        storage: URL of its database, if it has one.

    Raises:
        ConfigError: No run directory, or ``storage`` cannot be read.
        MissingMeasurementsError: There are none, or no database was given.
        RunMismatchError: ``run.json`` or the journal is corrupt.
    """
    return [m for stage in load_stages(run_dir, storage) for m in stage.measurements]


@dataclass(frozen=True)
class StageRecord:
    """The measurements of one stage of a search.

    Attributes:
        study: Name of its Optuna study; that of a later stage ends with its space's digest.
        measurements: Oldest first; rounds and times go on from the stage before.
    """

    study: str
    measurements: tuple[Measurement, ...]


def load_stages(run_dir: Path, storage: str | None = None) -> list[StageRecord]:
    """Return the measurements of each stage of a run so far; nothing is changed or made.

    Args:
        run_dir: Directory of the run.
        storage: URL of its database, if it has one.

    Raises:
        ConfigError: No run directory, or ``storage`` cannot be read.
        MissingMeasurementsError: There are none, or no database was given.
        RunMismatchError: ``run.json`` or the journal is corrupt.
    """
    directory = RunDirectory(run_dir)
    source = find_storage(directory, storage)
    shown = source if isinstance(source, Path) else redact_url(source)
    names = directory.read_studies()
    if isinstance(source, Path) and not source.exists():
        raise MissingMeasurementsError(f"there is no journal {shown}")
    try:
        found = _join({name: store.read_measurements(source, name) for name in names})
    except SparsitySearchError:  # it names the file
        raise
    except Exception as error:  # each database driver has errors of its own
        if isinstance(source, Path):
            raise RunMismatchError(f"{source} is corrupt: {error}") from error
        raise ConfigError(
            f"cannot read the measurements of {run_dir} from {shown}: {type(error).__name__}"
        ) from error
    if not any(stage.measurements for stage in found):
        raise MissingMeasurementsError(f"{shown} holds no measurements of this run")
    return found


def find_storage(directory: RunDirectory, storage: str | None = None) -> str | Path:
    """Return where a run's measurements are: the URL of its database, or the path of its journal.

    A database that a record names is not opened by itself: the record may be anybody's.

    Args:
        directory: Directory of the run.
        storage: URL of its database, if it has one; it is ignored if the run has a journal.

    Raises:
        MissingMeasurementsError: The run has a database, and it was not given.
    """
    recorded = directory.read_facts()["config"]["study"].get("storage")
    if recorded is None:
        return directory.journal_file
    if storage is None:
        raise MissingMeasurementsError(
            f"the measurements are in {redact_url(str(recorded))}: give its URL with --storage or "
            f"{STORAGE_VARIABLE}"
        )
    return storage


def _join(stages: Mapping[str, Sequence[Measurement]]) -> list[StageRecord]:
    """Return all stages as one search: rounds and time go on counting."""
    found: list[StageRecord] = []
    rounds, elapsed = 0, 0.0
    for name, measured in stages.items():
        moved = [replace(m, round=m.round + rounds, elapsed=m.elapsed + elapsed) for m in measured]
        rounds = max((m.round + 1 for m in moved), default=rounds)
        elapsed = max((m.elapsed for m in moved), default=elapsed)
        found.append(StageRecord(name, tuple(moved)))
    return found


def _select_profiles(
    profiles: Mapping[str, SparsityProfile], steps: Sequence[StepRecord], shipped: str | None
) -> dict[str, SparsityProfile]:
    """Return the profiles of the steps: an earlier session may have left others."""
    names = {shipped, *(step.name for step in steps)}
    return {n: profile for n, profile in profiles.items() if not steps or n in names}


def find_shipped_name(results: Mapping[str, Any] | None) -> str:
    """Return the name of the shipped profile."""
    return str((results or {}).get("shipped", SEARCHED))
