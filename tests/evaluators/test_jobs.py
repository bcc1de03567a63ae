"""The jobs with an evaluator that has data of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from sparsity_search.cli.main import main
from sparsity_search.config.load import load_config
from sparsity_search.data.sequences import Request
from sparsity_search.errors import DataError, RunMismatchError
from sparsity_search.evaluators.tasks import TasksEvaluator, _TasksProxy
from sparsity_search.testing.models import save_tiny_model, tiny_llama, tiny_text, tiny_tokenizer
from sparsity_search.workflow.evaluate import evaluate
from sparsity_search.workflow.search import search
from tests.helpers.questions import questions, write

NOWHERE = Request("evaluation", "file:/nowhere.txt", 3, 16)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def quiz(tmp_path: Path) -> str:
    return write(tmp_path / "quiz.jsonl", questions(21))


def config(model: Path, quiz: str, **more: Any) -> Any:
    options = {
        "model.name": str(model),
        "model.dtype": "float32",
        "budget.sparsity": 0.5,
        "evaluator.name": "tasks",
        "evaluator.files": [quiz],
        "evaluator.examples": 2,
        "data.search_length": 16,
        "data.search_sequences": 4,
        "data.calibration_length": 16,
        "data.calibration_sequences": 2,
        "data.final_length": 16,
        "data.final_sequences": 3,
        "ladder.candidates": 2,
        "ladder.rungs": [{"tokens": 32, "survivors": 1}],
        "study.rounds": 1,
        "initial": [],
    }
    return load_config(None, {**options, **more})


def test_evaluate_reads_no_text(model: Path, quiz: str) -> None:
    found = evaluate(config(model, quiz), NOWHERE)
    proxy = TasksEvaluator(files=(quiz,), examples=2).bind(tiny_llama(), None, tiny_tokenizer())  # type: ignore[arg-type]
    assert found.score == proxy.score(tiny_llama(), range(3))
    whole = evaluate(config(model, quiz), Request("evaluation", "file:/nowhere.txt", 0, 16))
    assert len(whole.score.parts) == 10
    with pytest.raises(DataError, match="has 10 rows, but 11 are needed: ask for fewer"):
        evaluate(config(model, quiz), Request("evaluation", "self", 11, 16))


@pytest.mark.parametrize("evaluator", ["tasks", "hidden_state"])
def test_the_command(
    model: Path,
    quiz: str,
    tmp_path: Path,
    evaluator: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "text.txt").write_text(tiny_text())
    arguments = [
        *("sparsity-search", "evaluate", str(model), "--text", f"file:{tmp_path}/text.txt"),
        *("--evaluator", evaluator, "--sequences", "3", "--length", "16"),
        *(("--set", f"evaluator.files=[{quiz}]") if evaluator == "tasks" else ()),
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as exit_:
        main()
    captured = capsys.readouterr()
    assert not exit_.value.code, captured.err
    value = float(captured.out.split()[1])
    assert value > 0.1 if evaluator == "tasks" else value == pytest.approx(0, abs=1e-6)


def test_search_compares_on_unseen_questions(
    model: Path, quiz: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    score = _TasksProxy.score
    monkeypatch.setattr(
        _TasksProxy,
        "score",
        lambda self, m, rows: seen.append(tuple(rows)) or score(self, m, rows),
    )
    out = tmp_path / "run"
    nowhere = {"data.search_text": "file:/nowhere.txt"}  # questions need no text to search on
    search(config(model, quiz, **nowhere), out)
    others = [rows for rows in seen if rows != (4, 5, 6)]
    assert len(seen) - len(others) == 3  # dense, uniform, searched
    assert others
    timed = [rows for rows in others if rows == (0,)]
    assert all(len(rows) == 2 and max(rows) < 4 for rows in others if rows not in timed)
    run = json.loads((out / "run.json").read_text())
    digest = TasksEvaluator(files=(quiz,), examples=2).own_data().digest
    assert run["fingerprint"]["evaluator.data"] == digest
    assert set(run["text"]) == {"calibration", "final"}
    write(Path(quiz), questions(21, seed=1))
    with pytest.raises(RunMismatchError, match=r"evaluator\.data"):
        search(config(model, quiz, **nowhere), out)


def test_gradients_need_text_to_search_on(model: Path, quiz: str, tmp_path: Path) -> None:
    wanted = {"data.search_text": "file:/nowhere.txt", "hints": ["gradients"]}
    with pytest.raises(DataError, match="nowhere"):
        search(config(model, quiz, **wanted), tmp_path / "run")


def test_search_tells_of_missing_questions_before_any_work(quiz: str, tmp_path: Path) -> None:
    wanted = config(tmp_path / "no model", quiz, **{"data.final_sequences": 7})
    with pytest.raises(DataError, match=r"has 10 rows, but 11 are needed: lower data\.search_seq"):
        search(wanted, tmp_path / "run")
    assert not (tmp_path / "run").exists()
