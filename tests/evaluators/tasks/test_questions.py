from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparsity_search.errors import DataError
from sparsity_search.evaluators.tasks.questions import (
    Question,
    compute_digest,
    read_questions,
    take_turns,
)

CHOICES = ["a cat", "two dogs"]
EXPECTED = Question(
    prompts=(("Question: Who?\nAnswer:", " a cat"), ("Question: Who?\nAnswer:", " two dogs")),
    characters=(5, 8),
    answer=1,
)
LABELLED = {"text": CHOICES, "label": ["A", "B"]}
GOOD = [
    {"query": "Question: Who?", "choices": CHOICES, "gold": 1},
    {"question": "Who?", "choices": CHOICES, "answer": 1},
    {"question": " Who? ", "choices": CHOICES, "answer": "B"},
    {"question": "Who?", "choices": CHOICES, "answerKey": "two dogs", "id": 3},
    {"question": "Who?", "choices": LABELLED, "answerKey": "B"},
    {"question": "Who?", "choices": LABELLED, "answer": 1},
    {"question": "Who?", "choices": {"text": CHOICES, "label": ["1", "2"]}, "answerKey": "2"},
    {"question": "Who?", "choices": {"text": CHOICES, "label": [0, 1]}, "answerKey": 1},
    {"question": "Who?", "choices": {"text": CHOICES, "label": [2, 1]}, "answerKey": 1},
]
BAD = [
    ([1, 2], "no question"),
    ({"text": "Who?"}, "no question with two choices"),
    ({"question": "Who?", "choices": ["a cat"], "answer": 0}, "two choices"),
    ({"question": "Who?", "choices": ["a cat", ""], "answer": 0}, "two choices"),
    ({"question": "Who?", "choices": "AB", "answer": 0}, "two choices"),
    ({"question": "Who?", "choices": {"text": CHOICES}, "answer": 0}, "two choices"),
    ({"question": "Who?", "choices": {"text": CHOICES, "label": ["A"]}, "answer": 0}, "two"),
    ({"question": " ", "choices": CHOICES, "answer": 0}, "two choices"),
    ({"question": {"stem": "Who?"}, "choices": CHOICES, "answer": 0}, "two choices"),
    ({"question": "Who?", "choices": CHOICES}, "None is none of its 2 choices"),
    ({"question": "Who?", "choices": CHOICES, "answer": 2}, "2 is none"),
    ({"question": "Who?", "choices": CHOICES, "answer": -1}, "-1 is none"),
    ({"question": "Who?", "choices": CHOICES, "answer": "C"}, "'C' is none"),
    ({"question": "Who?", "choices": CHOICES, "answer": True}, "True is none"),
    ({"question": "Who?", "choices": CHOICES, "answer": 1.0}, "1.0 is none"),
]


def file(folder: Path, *rows: Any) -> Path:
    path = folder / "quiz.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("row", GOOD)
def test_forms(tmp_path: Path, row: Any) -> None:
    assert read_questions(file(tmp_path, row)) == [EXPECTED]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_a_line_of_no_form(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        read_questions(file(tmp_path, GOOD[0], row))
    assert str(error.value).startswith("quiz.jsonl, line 2")
    assert "\n" not in str(error.value)


def test_lines(tmp_path: Path) -> None:
    path = tmp_path / "quiz.jsonl"
    line = json.dumps({**GOOD[0], "query": "Question: Who\u2028?"}, ensure_ascii=False)
    path.write_text(f"\n{line}\r\n \n{line}", encoding="utf-8")
    first, second = read_questions(path)
    assert first == second
    assert first.prompts[0][0] == "Question: Who\u2028?\nAnswer:"
    path.write_text("\n\n{broken")
    with pytest.raises(DataError, match=r"quiz.jsonl, line 3 is not JSON"):
        read_questions(path)


def test_a_byte_order_mark(tmp_path: Path) -> None:
    path = file(tmp_path, GOOD[0])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_questions(path) == [EXPECTED]


def test_files_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent.jsonl: No such file"):
        read_questions(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match=r"quiz.jsonl holds no questions"):
        read_questions(file(tmp_path))
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8"):
        read_questions(tmp_path / "binary.jsonl")


def test_turns_and_digest() -> None:
    a, b, c = (Question((("x", str(i)),) * 2, (1, 1), 0) for i in range(3))
    assert take_turns([[a, b], [c]]) == (a, c, b)
    assert take_turns([[a, b]]) == (a, b)
    assert (
        len(
            {
                compute_digest([a, b]),
                compute_digest([b, a]),
                compute_digest([a]),
                compute_digest([]),
            }
        )
        == 4
    )
    assert compute_digest([a, b]) == compute_digest((a, b))
