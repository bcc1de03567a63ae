from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from sparsity_search.errors import RunMismatchError
from sparsity_search.searchers.evolution import EvolutionSearcher
from sparsity_search.spaces.parameters import Parameter, spaced, stepped
from sparsity_search.spaces.parametric import ParametricSpace
from sparsity_search.study.study import Limits, Study
from sparsity_search.testing.problems import (
    SAVINGS,
    TOY_LADDER,
    SeparableProblem,
    toy_parametric,
    toy_space,
)
from sparsity_search.testing.runs import build_run_layout, build_run_profiles
from sparsity_search.trials.history import Fidelity, Measurement, Score
from sparsity_search.trials.storages import open_journal
from sparsity_search.trials.store import (
    Store,
    _average_by_depth,
    read_measurements,
    read_profiles,
)

FINGERPRINT = {"model": "tiny", "seed": 0, "rungs": [512, 4096], "exclude": None}
SOME = [
    Measurement(
        round=i,
        rung=i % 2,
        candidate=(i, -i, 0),
        fidelity=Fidelity(512 * (1 + i), subset=i),
        score=Score(0.1 * i - 0.05, (0.1 * i, 1e-17, -3.0)),
        seconds=0.25,
        elapsed=0.3 * i,
    )
    for i in range(3)
]


def opened(path: Path, **changes: object) -> Store:
    return Store(open_journal(path), "study", {**FINGERPRINT, **changes})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "journal.log"


def test_round_trip(path: Path) -> None:
    store = opened(path)
    assert store.load() == []
    for measurement in SOME:
        store.add(measurement)
    assert store.load() == SOME
    assert opened(path).load() == SOME


@pytest.mark.parametrize("storage", ["sqlite", "memory"])
def test_other_storages(tmp_path: Path, storage: str) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    store = Store(url if storage == "sqlite" else optuna.storages.InMemoryStorage(), "s", {})
    for measurement in SOME:
        store.add(measurement)
    assert store.load() == SOME


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_failures(path: Path, value: float) -> None:
    failed = Measurement(
        round=0, rung=0, candidate=(1, -1), fidelity=Fidelity(8), score=Score(value, (value, 1.0))
    )
    store = opened(path)
    for measurement in (SOME[0], failed, SOME[1]):
        store.add(measurement)
    read = opened(path).load()
    assert [m.failed for m in read] == [False, True, False]
    assert (read[1].candidate, read[1].fidelity) == (failed.candidate, failed.fidelity)
    assert read[::2] == SOME[:2]


def test_is_an_optuna_study(path: Path) -> None:
    store = opened(path)
    store.add(SOME[2])
    study = optuna.load_study(study_name="study", storage=open_journal(path))
    assert study.best_value == SOME[2].score.value
    assert study.best_trial.user_attrs["candidate"] == "2,-2,0"
    assert study.direction == optuna.study.StudyDirection.MINIMIZE


def test_trials_show_what_people_can_read(path: Path) -> None:
    space = toy_space()
    store = Store(open_journal(path), "study", FINGERPRINT, space)
    candidate = space.origin
    made = replace(SOME[2], candidate=candidate)
    store.add(made)
    assert store.load() == [made]
    (trial,) = optuna.load_study(study_name="study", storage=open_journal(path)).trials
    profile = space.profile(candidate)
    assert trial.params["rung"] == made.rung
    by_role = profile.grouped("role")
    assert {
        name.removeprefix("sparsity of "): share
        for name, share in trial.params.items()
        if name.startswith("sparsity of ") and "depth" not in name
    } == pytest.approx(by_role)
    depth = [share for name, share in trial.params.items() if "depth" in name]
    blocks = list(profile.grouped("block").values())
    assert 1 <= len(depth) <= 6
    assert min(blocks) <= min(depth) <= max(depth) <= max(blocks)
    assert trial.duration is not None
    assert trial.duration.total_seconds() == pytest.approx(made.seconds)


def test_sixths_of_the_depth_are_weighted_by_size(path: Path) -> None:
    layout = build_run_layout(blocks=12)
    profile = build_run_profiles(layout)["searched"]
    found = _average_by_depth(profile)
    for part in range(6):
        inside = [i for i, unit in enumerate(layout) if unit.block // 2 == part]
        removed = sum(profile.removed[i] for i in inside)
        size = sum(layout[i].size for i in inside)
        assert found[f"sparsity of depth {part + 1}/6"] == removed / size


def test_studies_of_one_storage_are_apart(path: Path) -> None:
    opened(path).add(SOME[0])
    assert Store(open_journal(path), "other", {"model": "x"}).load() == []


def test_another_fingerprint_names_the_keys(path: Path) -> None:
    opened(path)
    with pytest.raises(RunMismatchError, match=r"study 'study'.*seed \(0 → 1\)") as error:
        opened(path, seed=1, extra=3)
    assert "extra (absent → 3)" in str(error.value)
    assert "model (" not in str(error.value)


def test_torn_last_line(path: Path, tmp_path: Path) -> None:
    store = opened(path)
    for measurement in SOME[:2]:
        store.add(measurement)
    whole = path.stat().st_size
    store.add(SOME[2])
    content = path.read_bytes()
    assert content[whole:].count(b"\n") == 1
    for size in range(whole, len(content)):
        torn = tmp_path / f"{size}.log"
        torn.write_bytes(content[:size])
        store = opened(torn)
        assert store.load() == SOME[:2]
        if size % 16 == 0:
            store.add(SOME[2])
            assert opened(torn).load() == SOME


def test_whole_last_line_is_kept(path: Path) -> None:
    opened(path).add(SOME[0])
    before = path.read_bytes()
    assert opened(path).load() == SOME[:1]
    assert path.read_bytes()[: len(before)] == before


def test_study_with_failures_resumes(path: Path) -> None:
    space = toy_space()

    def problem() -> SeparableProblem:
        return SeparableProblem(space, noise=1.0, fails=lambda p: p.removed[0] > 55)

    def study(file: Path, objective: SeparableProblem) -> Study:
        return Study(
            space=space,
            searcher=EvolutionSearcher(),
            objective=objective,
            ladder=TOY_LADDER,
            store=opened(file),
        )

    expected = study(path, problem()).run(Limits(rounds=4))
    assert any(m.failed for m in expected.measurements)
    other = path.with_name("other.log")
    for k in (3, 11, 24):
        first = problem()
        stop = lambda first=first, k=k: len(first.calls) >= k  # noqa: E731
        study(other, first).run(Limits(rounds=4, stop=stop))
    found = study(other, problem()).run(Limits(rounds=4))
    assert found.winners == expected.winners
    candidates = [[m.candidate for m in h.measurements] for h in (found, expected)]
    assert candidates[0] == candidates[1]


PARAMETERS = (
    Parameter("m", (3, 5, 7.5)),
    stepped("depth", 2, 10, 4),
    stepped("spread", 0.02, 0.2, 0.02),
    spaced("damping", 0.001, 0.1, 5, log=True),
    Parameter("knots.0", ("a", None, True)),
)


def test_trials_have_parameters(path: Path) -> None:
    on = toy_space()
    space = ParametricSpace(PARAMETERS, allocate=lambda _: on.base, of_levels=on)
    store = Store(open_journal(path), "study", {}, space)
    made = []
    for i, candidate in enumerate([(0, 0, 0, 0, 0), (2, 2, 9, 4, 2), (1, 1, 2, 2, 1)]):
        score = Score(math.nan if i == 1 else float(i), (0.5,))
        made.append(
            Measurement(round=0, rung=0, candidate=candidate, fidelity=Fidelity(8), score=score)
        )
        store.add(made[-1])
    assert store.load()[::2] == made[::2]
    study = optuna.load_study(study_name="study", storage=open_journal(path))
    assert [list(trial.params.values()) for trial in study.trials] == [
        [3, 2, 0.02, 0.001, "a"],
        [7.5, 10, 0.2, 0.1, True],
        [5, 6, 0.06, pytest.approx(0.01), None],
    ]
    assert [t.state.name for t in study.trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert study.best_params["spread"] == 0.02
    distributions = study.trials[0].distributions
    assert list(distributions) == ["m", "depth", "spread", "damping", "knots.0"]
    assert distributions["m"] == optuna.distributions.CategoricalDistribution([3, 5, 7.5])
    assert distributions["depth"] == optuna.distributions.IntDistribution(2, 10, step=4)
    assert distributions["spread"] == optuna.distributions.FloatDistribution(0.02, 0.2)
    assert distributions["damping"] == optuna.distributions.FloatDistribution(0.001, 0.1, log=True)
    assert study.best_trial.user_attrs["candidate"] == "0,0,0,0,0"


def test_study_of_parameters_resumes(path: Path) -> None:
    space = toy_parametric()

    def history(rounds: int) -> list[tuple[int, ...]]:
        store = Store(open_journal(path), "study", FINGERPRINT, space)
        study = Study(
            space=space,
            searcher=EvolutionSearcher(),
            objective=SeparableProblem(space),
            ladder=TOY_LADDER,
            store=store,
        )
        return [m.candidate for m in study.run(Limits(rounds=rounds)).measurements]

    first = history(1)
    assert history(2)[: len(first)] == first
    trials = optuna.load_study(study_name="study", storage=open_journal(path)).trials
    assert len(trials) > len(first)
    for trial in trials:
        candidate = tuple(map(int, trial.user_attrs["candidate"].split(",")))
        assert trial.params == space.values(candidate)
    kept = read_profiles(path, "study", space.layout)
    assert kept == {m: space.profile(m) for m in kept}
    assert set(kept) == {m.candidate for m in read_measurements(path, "study")}


def test_profiles_of_settings_have_patterns(path: Path) -> None:
    """Settings that are refused, or whose scores are not finite, have none."""
    linears = (144, 48, 144, 384)
    on = toy_space(*linears, options=SAVINGS, target=0.3, reach=2)
    space = toy_parametric(stepped("tilt", -1.0, 1.0, 0.25), of_levels=on, limit=0.6)
    store = Store(open_journal(path), "study", {}, space)
    for i, candidate in enumerate([(1,), (5,), (8,)]):
        score = Score(1.0 if i == 0 else math.nan, ())
        store.add(
            Measurement(round=0, rung=0, candidate=candidate, fidelity=Fidelity(8), score=score)
        )
    kept = read_profiles(path, "study", on.layout)
    assert kept == {(1,): space.profile((1,))}
    assert kept[1,].patterns
    assert read_profiles(path, "another", on.layout) == {}
