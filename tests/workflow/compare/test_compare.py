from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsity_search.allocators.owl import OWLAllocator
from sparsity_search.config.load import load_config
from sparsity_search.engine.monitor import Monitor
from sparsity_search.errors import ConfigError, ProfileError, RunMismatchError, UnknownNameError
from sparsity_search.evaluators.perplexity import PerplexityEvaluator
from sparsity_search.interfaces.allocator import Allocation, AllocationProblem
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.io.loading import load_model
from sparsity_search.profiles.profile import from_counts
from sparsity_search.pruning.sequential import prune_sequentially
from sparsity_search.registry import PRUNERS, describe
from sparsity_search.workflow import compare as module
from sparsity_search.workflow.compare import FINAL_SEQUENCES, compare, fill_defaults
from sparsity_search.workflow.compare import rows as rows_module
from sparsity_search.workflow.compare.cases import Plan, parse_label, split_list
from tests.helpers.json_files import change_json
from tests.helpers.tiny_folder import make_tiny_folder

Make = Callable[..., Plan]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_folder(tmp_path_factory.mktemp("compare"))


@pytest.fixture
def make(folder: Path) -> Make:
    """Return plans on a tiny model: owl against uniform, Wanda at 60 %, one seed."""

    def plan(*overrides: str, pruners: tuple[str, ...] = ("wanda",), **fields: Any) -> Plan:
        options = {
            "model.name": str(folder / "tiny"),
            "data.calibration": f"file:{folder / 'text.txt'}",
            "data.calibration_length": 16,
            "data.calibration_sequences": 4,
            "data.final_length": 24,
            "data.final_sequences": 3,
        }
        configs = {p: load_config(None, {**options, "pruner.name": p}, overrides) for p in pruners}
        default = {"allocators": ("owl",), "sparsities": (0.6,)}
        return Plan(
            config=load_config(None, options, overrides),
            pruners={name: config.pruner for name, config in configs.items()},
            **{**default, **fields},
        )

    return plan


@pytest.fixture
def no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures out, which take most of the time."""
    monkeypatch.setattr(module, "write_comparison", lambda folder: None)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """Count what is pruned and what OWL allocates."""
    found: dict[str, list[Any]] = {"pruned": [], "allocated": []}

    def prune(subject: Any, profile: Any, pruner: Any, tokens: Any, **options: Any) -> Any:
        found["pruned"].append((profile.removed, pruner, tokens, options["seed"]))
        return prune_sequentially(subject, profile, pruner, tokens, **options)

    inner = OWLAllocator.propose

    def propose(self: OWLAllocator, problem: AllocationProblem) -> Any:
        found["allocated"].append((self, problem.tokens))
        return inner(self, problem)

    monkeypatch.setattr(rows_module, "prune_sequentially", prune)
    monkeypatch.setattr(OWLAllocator, "propose", propose)
    return found


def rows(out: Path) -> dict[str, dict[str, Any]]:
    return {file.stem: json.loads(file.read_text()) for file in (out / "rows").glob("*.json")}


def test_a_row_is_what_pruning_by_hand_gives(make: Make, tmp_path: Path, folder: Path) -> None:
    compare(make(sparsities=(0.55,)), tmp_path / "out")
    found = rows(tmp_path / "out")
    assert set(found) == {"wanda-55-uniform-seed0", "wanda-55-owl-seed0"}
    row = found["wanda-55-owl-seed0"]
    loaded = load_model(str(folder / "tiny"))
    subject, out = PrunableModel(loaded.model), tmp_path / "out"
    stored = json.loads((out / "profiles" / "55-owl-seed0.json").read_text())
    assert row["removed"] == stored["removed"] == round(0.55 * stored["weights"])
    # the final text is the start of the source, calibration what follows
    ids = loaded.tokenizer((folder / "text.txt").read_text())["input_ids"]
    final = torch.tensor(ids[: 3 * 24]).view(3, 24)
    calibration = torch.tensor(ids[72 : 72 + 64]).view(4, 16)
    profile = from_counts(subject.layout, [u["removed"] for u in stored["units"].values()])
    dense = PerplexityEvaluator().bind(loaded.model, final).score(loaded.model, range(3)).value
    prune_sequentially(subject, profile, PRUNERS.create("wanda"), calibration)
    wanted = PerplexityEvaluator().bind(loaded.model, final).score(loaded.model, range(3)).value
    assert row["perplexity"] == pytest.approx(wanted, rel=1e-6)
    assert row["ratio"] == pytest.approx(wanted / found["wanda-55-uniform-seed0"]["perplexity"])
    assert json.loads((out / "compare.json").read_text())["dense"] == pytest.approx(dense)
    assert row["allocation"]["passes"] == pytest.approx(1)
    assert found["wanda-55-uniform-seed0"]["allocation"]["passes"] == 0
    assert "OWL(m=5.0" in row["fingerprint"]["allocator"]
    assert (out / "report.html").exists()


def test_seeds_have_text_of_their_own(
    make: Make, tmp_path: Path, calls: dict[str, list[Any]], no_pages: None
) -> None:
    compare(make("study.seed=3", seeds=2), tmp_path / "out")
    found = rows(tmp_path / "out")
    assert {row["seed"] for row in found.values()} == {3, 4}
    text = {seed: tokens for _, _, tokens, seed in calls["pruned"]}
    assert set(text) == {3, 4}
    assert not torch.equal(text[3], text[4])
    for (_, tokens), seed in zip(calls["allocated"], (3, 4), strict=True):
        assert torch.equal(tokens, text[seed])
    for row in found.values():
        uniform = found[f"wanda-60-uniform-seed{row['seed']}"]["perplexity"]
        assert row["ratio"] == pytest.approx(row["perplexity"] / uniform)


def test_more_may_be_added_later(
    make: Make, tmp_path: Path, calls: dict[str, list[Any]], no_pages: None
) -> None:
    out = tmp_path / "out"
    compare(make(), out)
    before = rows(out)
    assert len(calls["pruned"]) == 2
    more = {"allocators": ("lamp", "owl"), "sparsities": (0.7, 0.6), "seeds": 2}
    compare(make(pruners=("magnitude", "wanda"), **more), out)
    after = rows(out)
    assert len(after) == 3 * 2 * 2 * 2
    assert len(calls["pruned"]) == len(after)
    assert {key: after[key] for key in before} == before
    asked = json.loads((out / "compare.json").read_text())["rows"]
    assert sorted(asked) == sorted(after)
    # a smaller call changes nothing, and forgets nothing
    compare(make(), out)
    assert rows(out) == after
    assert json.loads((out / "compare.json").read_text())["rows"] == asked
    with (out / "table.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(after)


def test_an_interrupted_comparison_goes_on(
    make: Make,
    tmp_path: Path,
    calls: dict[str, list[Any]],
    monkeypatch: pytest.MonkeyPatch,
    no_pages: None,
) -> None:
    plan = make(allocators=("owl", "lamp"), sparsities=(0.5, 0.7))
    counted = rows_module.prune_sequentially

    def killed(*args: Any, **options: Any) -> Any:
        if len(calls["pruned"]) == 4:
            raise KeyboardInterrupt
        return counted(*args, **options)

    monkeypatch.setattr(rows_module, "prune_sequentially", killed)
    with pytest.raises(KeyboardInterrupt):
        compare(plan, tmp_path / "cut")
    assert len(rows(tmp_path / "cut")) == 4
    assert len((tmp_path / "cut" / "table.csv").read_text().splitlines()) == 5
    monkeypatch.setattr(rows_module, "prune_sequentially", counted)
    compare(plan, tmp_path / "cut")
    assert len(calls["pruned"]) == 6
    assert len(calls["allocated"]) == 2  # owl was allocated at 0.7 before the cut, and is kept
    compare(plan, tmp_path / "whole")
    times = ("allocation", "pruning", "checksum")
    for key, row in rows(tmp_path / "whole").items():
        cut = rows(tmp_path / "cut")[key]
        assert {k: v for k, v in row.items() if k not in times} == {
            k: v for k, v in cut.items() if k not in times
        }


def test_a_monitor_may_stop_it(make: Make, tmp_path: Path) -> None:
    class Impatient(Monitor):
        def stopped(self) -> bool:
            return any(stage.startswith("score wanda") for stage in self.seconds)

    compare(make(), tmp_path / "out", monitor=Impatient())
    assert len(rows(tmp_path / "out")) == 1
    assert (tmp_path / "out" / "report.html").exists()


def test_pruners_share_a_profile_and_its_cost(
    make: Make, tmp_path: Path, calls: dict[str, list[Any]], no_pages: None
) -> None:
    plan = make(pruners=("wanda", "sparsegpt"), allocators=("owl", "essential"))
    compare(plan, tmp_path / "out")
    found = rows(tmp_path / "out")
    assert len(calls["allocated"]) == 1
    assert found["wanda-60-owl-seed0"]["shared_with"] is None
    assert found["sparsegpt-60-owl-seed0"]["shared_with"] == "wanda-60-owl-seed0"
    # this one prunes for its own use: with the pruner of its row, and each row pays
    for pruner, name in (("wanda", "Wanda"), ("sparsegpt", "SparseGPT")):
        row = found[f"{pruner}-60-essential-seed0"]
        assert row["shared_with"] is None
        assert f"pruner={name}(" in row["fingerprint"]["allocator"]
    assert len(list((tmp_path / "out" / "profiles").iterdir())) == 4


def test_a_method_that_refuses_is_a_row(make: Make, tmp_path: Path) -> None:
    compare(make(allocators=("sleb", "owl")), tmp_path / "out")
    found = rows(tmp_path / "out")
    assert "needs units blocks" in found["wanda-60-sleb-seed0"]["error"]
    assert found["wanda-60-owl-seed0"]["error"] is None
    assert "needs units blocks" in (tmp_path / "out" / "table.md").read_text()


def test_a_profile_of_another_size_is_refused(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pages: None
) -> None:
    def propose(_: OWLAllocator, problem: AllocationProblem) -> Allocation:
        first, *others = problem.uniform.removed
        return Allocation(from_counts(problem.layout, [first - 1, *others]))

    monkeypatch.setattr(OWLAllocator, "propose", propose)
    compare(make(), tmp_path / "out")
    assert "the budget says 16589" in rows(tmp_path / "out")["wanda-60-owl-seed0"]["error"]


def test_the_model_is_dense_again_for_each_row(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pages: None
) -> None:
    seen: list[int] = []

    def detailed(self: Any, subject: Any, tokens: Any, budget: Any, bounds: Any) -> Allocation:
        seen.append(subject.zeros().n_removed)
        view = next(iter(subject.views.values()))
        view.write(torch.zeros_like(view.read()))
        raise ProfileError("broken")

    monkeypatch.setattr(OWLAllocator, "detailed", detailed)
    compare(make(sparsities=(0.5, 0.6)), tmp_path / "out")
    assert seen == [0, 0]


MISMATCHES = {
    "text": (["data.final_sequences=2"], "data.final_sequences"),
    "bounds": (["budget.bounds={q: [0, 0.9]}"], "budget.bounds.q"),
    "first seed": (["study.seed=1"], "study.seed"),
    "an allocator": (["allocators.owl.m=7"], "allocator .*OWL"),
    "a pruner": (["pruner.pattern=layer"], "pruner .*Wanda"),
}


@pytest.fixture(scope="module")
def done(folder: Path) -> dict[str, Path]:
    return {"out": folder / "out"}


@pytest.mark.parametrize("name", MISMATCHES)
def test_another_configuration_is_refused(
    make: Make, done: dict[str, Path], no_pages: None, name: str
) -> None:
    compare(make(), done["out"])
    overrides, message = MISMATCHES[name]
    before = {file: file.read_bytes() for file in done["out"].rglob("*.json")}
    with pytest.raises(RunMismatchError, match=message):
        compare(make(*overrides), done["out"])
    assert {file: file.read_bytes() for file in done["out"].rglob("*.json")} == before


def test_another_model_or_text_is_refused(
    make: Make, tmp_path: Path, folder: Path, no_pages: None
) -> None:
    compare(make(), tmp_path / "out")
    file = tmp_path / "out" / "compare.json"
    for key in ("model", "text.final", "text.calibration-seed0"):
        before = file.read_bytes()
        change_json(file, fingerprint={**json.loads(before)["fingerprint"], key: "another"})
        with pytest.raises(RunMismatchError, match=f"{key} "):
            compare(make(), tmp_path / "out")
        file.write_bytes(before)


REFUSED = {
    "unknown allocator": ({"allocators": ("owl", "olw")}, UnknownNameError),
    "unknown setting": ({"allocators": ("owl[n=3]",)}, ConfigError),
    "bad setting": ({"allocators": ("owl[m=-1]",)}, ConfigError),
    "unknown pruner": ({"pruners": ("wnada",)}, UnknownNameError),
    "kinds differ": ({"pruners": ("wanda", "flap")}, ConfigError),
    "sparsity": ({"sparsities": (0.5, 1.5)}, ConfigError),
    "seeds": ({"seeds": 0}, ConfigError),
    "nothing": ({"sparsities": ()}, ConfigError),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_any_work(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fields, error = REFUSED[name]
    monkeypatch.setattr(module, "open_session", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(error):
        compare(make(**fields), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused(make: Make, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(ConfigError, match="holds no comparison"):
        compare(make(), tmp_path)
    with pytest.raises(ConfigError, match="is a file"):
        compare(make(), tmp_path / "mine.txt")


def test_a_row_that_is_corrupt_is_told(make: Make, tmp_path: Path, no_pages: None) -> None:
    compare(make(), tmp_path / "out")
    (tmp_path / "out" / "rows" / "wanda-60-owl-seed0.json").write_text("{")
    with pytest.raises(RunMismatchError, match="owl-seed0"):
        compare(make(), tmp_path / "out")


def test_composed_pruners_and_variants_have_keys(make: Make) -> None:
    plan = make(pruners=("wanda+refit",), allocators=("owl[m=7;spread=0.2]",), sparsities=(0.675,))
    (uniform, owl) = plan.list_cases()
    assert uniform.key == "wanda+refit-67.5-uniform-seed0"
    assert owl.key == "wanda+refit-67.5-owl_m=7_spread=0.2-seed0"
    assert owl.profile_key == "67.5-owl_m=7_spread=0.2-seed0"
    assert describe(owl.allocating).startswith("OWL(m=7, spread=0.2")
    assert "mask=Wanda" in repr(owl.pruning)


def test_settings_of_a_label_go_over_those_of_the_configuration(make: Make) -> None:
    plan = make("allocators.owl={m: 3, spread: 0.1}", allocators=("owl", "owl[m=7]"))
    _, plain, variant = plan.list_cases()
    assert (plain.allocating.m, plain.allocating.spread) == (3, 0.1)
    assert (variant.allocating.m, variant.allocating.spread) == (7, 0.1)


def test_an_allocator_draws_with_the_seed_of_its_row(make: Make) -> None:
    cases = make("study.seed=3", allocators=("knapsack", "knapsack[seed=9]"), seeds=2).list_cases()
    seeds = [case.allocating.seed for case in cases if case.allocator != "uniform"]  # type: ignore[attr-defined]
    assert seeds == [3, 9, 4, 9]


def test_equal_labels_are_one_and_uniform_is_first(make: Make) -> None:
    cases = make(allocators=("owl", "uniform", "owl"), sparsities=(0.5, 0.5)).list_cases()
    assert [case.allocator for case in cases] == ["uniform", "owl"]


def test_labels_with_one_file_name_are_refused(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sparsity_search.workflow.compare.cases.make_slug", lambda label: label[:3]
    )
    with pytest.raises(ConfigError, match="same file name"):
        make(allocators=("owl", "owl[m=7]")).list_cases()


@pytest.mark.parametrize("label", ["owl[m]", "owl[m=7", "owl[=7]", "owl[m={]"])
def test_labels_of_no_form(label: str) -> None:
    with pytest.raises(ConfigError):
        parse_label(label)


def test_labels_may_hold_lists() -> None:
    assert split_list("a[x=[1,2];y={k: 3}],b") == ["a[x=[1,2];y={k: 3}]", "b"]
    assert parse_label("a[x=[1,2];y={k: 3}]") == ("a", {"x": [1, 2], "y": {"k": 3}})


def test_the_text_has_forty_sequences_unless_told(make: Make, folder: Path) -> None:
    assert fill_defaults(make().config).data.final_sequences == 3
    assert fill_defaults(load_config(None, {"model.name": "x"})).data.final_sequences == 40
    assert FINAL_SEQUENCES == 40
