from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparsity_search.errors import ConfigError, DataError
from sparsity_search.evaluators.tasks import TasksEvaluator, _TasksProxy
from sparsity_search.evaluators.tasks.continuations import encode
from sparsity_search.evaluators.tasks.questions import Question
from sparsity_search.registry import EVALUATORS
from sparsity_search.testing.evaluator import scale_model
from sparsity_search.testing.models import tiny_llama, tiny_tokenizer
from tests.helpers.families import FAMILIES
from tests.helpers.questions import log_likelihoods, questions, write

NO_TEXT = torch.empty((0, 8), dtype=torch.int64)


def score(tasks: TasksEvaluator, model: nn.Module, rows: Any) -> Any:
    return tasks.bind(model, NO_TEXT, tiny_tokenizer()).score(model, rows)


def expected(row: dict[str, Any], scores: list[float], *, normalise: bool) -> tuple[float, float]:
    """Return loss and error of one question, straight from the formulas."""
    if normalise:
        scores = [s / len(c) for s, c in zip(scores, row["choices"], strict=True)]
    log_p = torch.tensor(scores, dtype=torch.float64).log_softmax(-1)
    return -float(log_p[row["gold"]]), float(int(log_p.argmax()) != row["gold"])


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("family", ["llama", "gemma3", "opt"])
def test_is_the_naive_one(tmp_path: Path, family: str, normalise: bool) -> None:
    rows, model = questions(6), FAMILIES[family]()
    for index, row in enumerate(rows):
        row["gold"] = index % 3
    path = write(tmp_path / "quiz.jsonl", rows)
    wanted = [expected(r, log_likelihoods(model, r), normalise=normalise) for r in rows]
    options: dict[str, Any] = {"files": (path,), "normalise": normalise, "examples": 2}
    for index, measure in enumerate(("loss", "error")):
        found = score(TasksEvaluator(**options, measure=measure), model, [2, 0])
        parts = [sum(w[index] for w in wanted[i : i + 2]) / 2 for i in (4, 0)]
        assert found.parts == pytest.approx(parts, rel=1e-4)
        assert found.value == pytest.approx(sum(parts) / 2, rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_batches_change_nothing(tmp_path: Path, batch_size: int) -> None:
    path = write(tmp_path / "quiz.jsonl", questions(8))
    found = score(TasksEvaluator(files=(path,), batch_size=batch_size), scale_model(0.7), range(2))
    assert found.parts == pytest.approx(
        score(TasksEvaluator(files=(path,)), scale_model(0.7), range(2)).parts
    )


def test_files_take_turns(tmp_path: Path) -> None:
    rows = questions(7)
    files = (write(tmp_path / "a", rows[:2]), write(tmp_path / "b", rows[2:]))
    mixed = write(tmp_path / "c", [rows[i] for i in (0, 2, 1, 3, 4, 5, 6)])
    two, one = TasksEvaluator(files=files, examples=2), TasksEvaluator(files=(mixed,), examples=2)
    assert two.own_data() == one.own_data()
    assert one.own_data().n_rows == 3  # and one question left over
    model = tiny_llama()
    assert score(two, model, range(3)) == score(one, model, range(3))


def test_what_is_read_once_stays(tmp_path: Path) -> None:
    path = write(tmp_path / "quiz.jsonl", questions(8))
    tasks = TasksEvaluator(files=(path,))
    before = tasks.own_data()
    write(tmp_path / "quiz.jsonl", questions(8, seed=1))
    assert tasks.own_data() == before
    assert TasksEvaluator(files=(path,)).own_data().digest != before.digest


def test_long_questions_are_cut_from_the_left(tmp_path: Path) -> None:
    rows = questions(1)
    rows[0]["query"] = "x" * 300 + "y" * 100 + "?"
    model = tiny_llama()
    found = score(TasksEvaluator(files=(write(tmp_path / "quiz", rows),), examples=1), model, [0])
    whole = tiny_tokenizer()(f"{rows[0]['query']}\nAnswer:", verbose=False)["input_ids"]
    scores = []
    for choice in rows[0]["choices"]:
        targets = tiny_tokenizer()(f" {choice}")["input_ids"]
        ids = torch.tensor([(whole + targets)[-257:]])
        log_p = model(input_ids=ids[:, :-1]).logits[0].double().log_softmax(-1)
        likely = log_p[-len(targets) :].gather(1, ids[0, -len(targets) :, None])
        scores.append(float(likely.sum()))
    assert found.value == pytest.approx(expected(rows[0], scores, normalise=True)[0], rel=1e-4)


def test_encoding() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer("ab cd")["input_ids"]
    for context, continuation in (("ab", " cd"), ("ab ", "cd")):  # spaces go over
        found = encode(tokenizer, context, continuation, None)
        assert found.inputs.tolist() == ids[:-1]
        assert found.targets.tolist() == ids[2:]
    assert encode(tokenizer, "ab", " cd", 3).inputs.tolist() == ids[1:-1]
    for longest, message in ((2, "has 3 tokens: it needs 1 to 2"), (None, "has 0 tokens")):
        with pytest.raises(DataError, match=message):
            encode(tokenizer, "ab", " cd" if longest else "", longest)


def test_special_tokens_are_the_tokenizers(tmp_path: Path) -> None:
    class Begins:
        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [1, *tiny_tokenizer()(text)["input_ids"]]}

    found = encode(Begins(), "ab", " c", None)
    assert found.inputs.tolist() == [1, *tiny_tokenizer()("ab ")["input_ids"]]
    assert len(found.targets) == 2


@pytest.mark.parametrize("measure", ["loss", "error"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_model_never_answers(tmp_path: Path, measure: Any, bad: float) -> None:
    model = tiny_llama()
    model.lm_head.weight[5] = bad
    tasks = TasksEvaluator(files=(write(tmp_path / "quiz.jsonl", questions(8)),), measure=measure)
    proxy = tasks.bind(tiny_llama(), NO_TEXT, tiny_tokenizer())
    assert math.isnan(proxy.score(model, [0, 1]).value)


def answered(values: Sequence[float], answer: int, **settings: Any) -> float:
    """Return the score of one question whose log-likelihoods are given."""
    question = Question((("?", " x"),) * len(values), (2,) * len(values), answer)
    tasks = TasksEvaluator(files=("none",), examples=1, **settings)
    return _TasksProxy(tasks, [question], lambda *_: list(values)).score(nn.Identity(), [0]).value


@given(st.lists(st.floats(-1000, 0), min_size=3, max_size=3), st.floats(0.01, 100))
def test_loss_is_lower_if_the_right_choice_is_likelier(values: list[float], more: float) -> None:
    losses = [answered([values[0] + i * more, *values[1:]], 0) for i in range(3)]
    assert all(math.isfinite(loss) and loss >= -1e-9 for loss in losses)
    assert all(after <= before + 1e-9 for before, after in pairwise(losses))


def test_loss_of_known_scores() -> None:
    assert answered([-3.0] * 4, 2) == pytest.approx(math.log(4))
    assert answered([0.0, 2 * math.log(3)], 1) == pytest.approx(math.log(4 / 3))
    assert answered([0.0, math.log(3)], 1, normalise=False) == pytest.approx(math.log(4 / 3))
    assert answered([-5000.0, 0.0], 0) == pytest.approx(2500)


def test_ties_go_to_the_first_choice() -> None:
    assert answered([-3.0, -3.0], 0, measure="error") == 0
    assert answered([-3.0, -3.0], 1, measure="error") == 1


def test_too_few_questions(tmp_path: Path) -> None:
    tasks = TasksEvaluator(files=(write(tmp_path / "quiz.jsonl", questions(3)),))
    assert tasks.own_data().n_rows == 0
    with pytest.raises(DataError, match="has 0 rows, but 1 are needed: lower examples"):
        tasks.bind(tiny_llama(), NO_TEXT, tiny_tokenizer())
    tasks = TasksEvaluator(files=(write(tmp_path / "quiz.jsonl", questions(9)),))
    with pytest.raises(DataError, match="make 2 rows of 4: there is no 2"):
        score(tasks, tiny_llama(), [0, 2])


def test_the_tokenizer_is_needed(tmp_path: Path) -> None:
    tasks = TasksEvaluator(files=(write(tmp_path / "quiz.jsonl", questions(8)),))
    with pytest.raises(ConfigError, match="needs the model's tokenizer"):
        tasks.bind(tiny_llama(), NO_TEXT)


def test_something_must_be_asked() -> None:
    for use in (
        TasksEvaluator().own_data,
        lambda: TasksEvaluator().bind(tiny_llama(), NO_TEXT, object()),
    ):
        with pytest.raises(ConfigError, match="give one of these settings"):
            use()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"files": ("a",), "tasks": ("b",)}, "give one of these settings"),
        ({"files": "a.jsonl"}, "files: must be a valid list"),
        ({"tasks": (1,)}, r"tasks\.0: must be a valid string, not 1"),
        ({"files": ("a",), "include": "b"}, "include and num_fewshot are for tasks"),
        ({"files": ("a",), "num_fewshot": 0}, "include and num_fewshot are for tasks"),
        ({"tasks": ("a",), "num_fewshot": -1}, "num_fewshot must not be negative"),
        ({"files": ("a",), "examples": 0}, "examples and batch_size must be at least 1"),
        ({"files": ("a",), "batch_size": 0}, "examples and batch_size must be at least 1"),
        ({"files": ("a",), "measure": "accuracy"}, "measure: must be 'loss' or 'error'"),
    ],
)
def test_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EVALUATORS.create("tasks", **settings)
