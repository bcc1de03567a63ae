from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sparsity_search.errors import ConfigError, MissingExtraError
from sparsity_search.evaluators.tasks import TasksEvaluator
from sparsity_search.testing.evaluator import scale_model
from sparsity_search.testing.models import tiny_llama, tiny_tokenizer
from tests.helpers.questions import log_likelihoods, questions, write

NO_TEXT = torch.empty((0, 8), dtype=torch.int64)
INSTALLED = importlib.util.find_spec("lm_eval") is not None


@dataclass
class Instance:
    request_type: str
    doc: dict[str, Any]
    arguments: tuple[Any, ...]
    idx: int
    doc_id: int = 0

    @property
    def args(self) -> tuple[Any, ...]:
        return self.arguments


@dataclass
class FakeTask:
    """A task of lm-eval over documents of our own form."""

    name: str
    rows: list[dict[str, Any]]
    output_type: str = "multiple_choice"
    multiple_input: bool = False
    calls: list[Any] = field(default_factory=list)
    instances: list[Instance] = field(default_factory=list)

    @property
    def config(self) -> Any:
        return SimpleNamespace(task=self.name, output_type=self.output_type)

    def set_config(self, *, key: str, value: Any) -> None:
        self.calls.append((key, value))

    def set_fewshot_seed(self, *, seed: int) -> None:
        self.calls.append(("seed", seed))

    def build_all_requests(self) -> None:
        self.calls.append("built")
        for number, row in enumerate(self.rows):
            for index, choice in enumerate(row["choices"]):
                prompt = (f"{row['query']}\nAnswer:", f" {choice}", {"more": 1})
                self.instances.append(Instance("loglikelihood", row, prompt, index, number))
            # what mutual information asks in addition
            self.instances.append(Instance("loglikelihood", row, ("", " x"), 9, number))

    def doc_to_choice(self, row: dict[str, Any]) -> list[str]:
        return row["choices"]

    def doc_to_target(self, row: dict[str, Any]) -> Any:
        return row["gold"]

    def doc_to_text(self, row: dict[str, Any]) -> Any:
        return row["query"]


class Fake:
    """Stands for the package; keeps what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tree: Any) -> None:
        self.calls: list[Any] = []
        self.wrapped: list[dict[str, Any]] = []

        def get_task_dict(names: list[str], manager: Any) -> Any:
            self.calls.append((names, manager))
            if isinstance(tree, Exception):
                raise tree
            return tree

        outer = self

        class HFLM:
            def __init__(self, **settings: Any) -> None:
                outer.wrapped.append(settings)
                settings["tokenizer"].pad_token = "<unk>"

            def loglikelihood(self, requests: list[Any], disable_tqdm: bool) -> Any:
                assert disable_tqdm
                outer.calls.append([request.args for request in requests])
                return [(-float(len(r.args[1])) * (1 + r.idx), False) for r in requests]

        modules: dict[str, dict[str, Any]] = {
            "lm_eval": {},
            "lm_eval.tasks": {"TaskManager": lambda **k: k, "get_task_dict": get_task_dict},
            "lm_eval.api": {},
            "lm_eval.api.instance": {"Instance": Instance},
            "lm_eval.models": {},
            "lm_eval.models.huggingface": {"HFLM": HFLM},
        }
        for name, members in modules.items():
            module = ModuleType(name)
            vars(module).update(members)
            monkeypatch.setitem(sys.modules, name, module)


def test_the_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtraError, match=r'pip install "sparsity-search\[tasks\]"'):
        TasksEvaluator(tasks=("arc_easy",)).own_data()


def test_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = FakeTask("a", questions(3)), FakeTask("b", questions(1, seed=1))
    fake = Fake(monkeypatch, {"group": {"a": a, "deeper": {"b": b}}})
    tasks = TasksEvaluator(
        tasks=("group",), include="mine", num_fewshot=5, examples=2, batch_size=3, normalise=False
    )
    assert tasks.own_data().n_rows == 2
    assert fake.calls == [(["group"], {"include_path": "mine"})]
    assert a.calls == b.calls == [("num_fewshot", 5), ("seed", 1234), "built"]
    tokenizer, model = tiny_tokenizer(), tiny_llama()
    proxy = tasks.bind(model, NO_TEXT, tokenizer)
    first = proxy.score(model, [0])
    asked = [a.rows[0], b.rows[0]]  # the tasks take turns
    assert fake.calls[1] == [
        (f"{row['query']}\nAnswer:", f" {choice}") for row in asked for choice in row["choices"]
    ]
    assert proxy.score(model, [0]) == first
    (settings,) = fake.wrapped  # one model is wrapped once
    assert settings["pretrained"] is model
    assert (settings["batch_size"], settings["softmax_dtype"]) == (3, torch.float32)
    assert tokenizer.pad_token is None
    proxy.score(other := tiny_llama(), [0])
    assert fake.wrapped[1]["pretrained"] is other


def test_a_task_is_asked_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    task = FakeTask("a", questions(2))
    fake = Fake(monkeypatch, {"a": task})
    assert TasksEvaluator(tasks=("a",), examples=1).own_data().n_rows == 2
    assert task.calls == [("seed", 1234), "built"]
    assert fake.calls == [(["a"], {"include_path": None})]


def test_newer_releases_load_flat(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = {"a": FakeTask("a", questions(2)), "b": FakeTask("b", questions(2, seed=1))}
    Fake(monkeypatch, AssertionError("the old way"))

    def load(names: list[str]) -> dict[str, Any]:
        return {"tasks": {name: tasks[name] for name in names}, "groups": {}}

    monkeypatch.setattr(
        sys.modules["lm_eval.tasks"], "TaskManager", lambda **_: SimpleNamespace(load=load)
    )
    assert TasksEvaluator(tasks=("b", "a"), examples=1).own_data().n_rows == 4
    first = TasksEvaluator(tasks=("b",))._questions[0]
    assert first.prompts[0][1].strip() == tasks["b"].rows[0]["choices"][0]


def test_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = questions(2)
    rows[0] |= {"gold": rows[0]["choices"][2]}
    rows[1] |= {"gold": 1}
    Fake(monkeypatch, {"a": FakeTask("a", rows)})
    first, second = TasksEvaluator(tasks=("a",))._questions
    assert (first.answer, second.answer) == (2, 1)
    assert first.characters == tuple(len(choice) for choice in rows[0]["choices"])
    rows[0] |= {"query": 1}  # the choices are contexts, and the answer is under the text
    task = FakeTask("a", rows[:1], multiple_input=True)
    Fake(monkeypatch, {"a": task})
    assert TasksEvaluator(tasks=("a",))._questions[0].answer == 1


@pytest.mark.parametrize("gold", [[0, 1], 7, -1, "nothing", None])
def test_questions_without_one_answer(monkeypatch: pytest.MonkeyPatch, gold: Any) -> None:
    rows = [{**questions(1)[0], "gold": gold}]
    Fake(monkeypatch, {"a": FakeTask("a", rows)})
    with pytest.raises(ConfigError, match="the task a has a question without one right choice"):
        TasksEvaluator(tasks=("a",)).own_data()


def test_other_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    Fake(monkeypatch, {"a": FakeTask("a", [], output_type="generate_until")})
    with pytest.raises(ConfigError, match="the task a is of the type generate_until"):
        TasksEvaluator(tasks=("a",)).own_data()
    Fake(monkeypatch, KeyError("no such\ntask"))
    with pytest.raises(ConfigError, match=r"cannot load the tasks a, b: .no such"):
        TasksEvaluator(tasks=("a", "b")).own_data()


YAML = """task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{query}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: gold
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Return a file of questions, and a folder with a task over them."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    manager = importlib.import_module("lm_eval.tasks").TaskManager
    few = partial(manager, include_defaults=False)  # thousands of files are not read
    monkeypatch.setattr("lm_eval.tasks.TaskManager", few)
    path = write(tmp_path / "quiz.jsonl", questions(6))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.yaml").write_text(YAML.replace("FILE", path))
    return path, str(tmp_path / "tasks")


@pytest.mark.skipif(not INSTALLED, reason="lm-eval is not installed")
@pytest.mark.parametrize("model", [tiny_llama(), scale_model(0.7)], ids=["dense", "weaker"])
def test_files_and_lm_eval_agree(mine: tuple[str, str], model: nn.Module) -> None:
    path, folder = mine
    by_file = TasksEvaluator(files=(path,), examples=2)
    by_task = TasksEvaluator(tasks=("mine",), include=folder, examples=2)
    assert by_file.own_data() == by_task.own_data()
    ours, theirs = (
        tasks.bind(model, NO_TEXT, tiny_tokenizer()).score(model, [2, 0, 1])
        for tasks in (by_file, by_task)
    )
    assert theirs.parts == pytest.approx(ours.parts, rel=1e-4)
    naive = log_likelihoods(model, questions(1)[0])
    scorer = by_task.bind(model, NO_TEXT, tiny_tokenizer())._ask  # type: ignore[attr-defined]
    assert scorer(model, [0]) == pytest.approx(naive, rel=1e-4)


@pytest.mark.skipif(not INSTALLED, reason="lm-eval is not installed")
def test_accuracy_is_lm_evals(mine: tuple[str, str]) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    path, folder = mine
    model = scale_model(0.7)
    found = lm_eval.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tiny_tokenizer()),
        tasks=["mine"],
        task_manager=TaskManager(include_path=folder),
        bootstrap_iters=0,
    )["results"]["mine"]
    for normalise, name in ((False, "acc,none"), (True, "acc_norm,none")):
        tasks = TasksEvaluator(files=(path,), examples=6, measure="error", normalise=normalise)
        score = tasks.bind(model, NO_TEXT, tiny_tokenizer()).score(model, [0]).value
        assert 1 - score == pytest.approx(found[name])
