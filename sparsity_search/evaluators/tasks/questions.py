"""Multiple-choice questions, and reading them from JSON lines."""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from sparsity_search.data.text_files import read_json_lines
from sparsity_search.errors import DataError

_FORMS = (
    "a line needs `query`, `choices` and `gold`, or `question`, `choices` and `answer` "
    "or `answerKey`"
)


@dataclass(frozen=True)
class Question:
    """A question with one right choice.

    Attributes:
        prompts: Context and continuation of each choice; the continuation is scored.
        characters: Length of each choice, by which lm-eval's ``acc_norm`` divides.
        answer: Index of the right choice.
    """

    prompts: tuple[tuple[str, str], ...]
    characters: tuple[int, ...]
    answer: int


def read_questions(path: Path) -> list[Question]:
    """Return the questions of a file of JSON lines.

    A line holds ``{"query", "choices": [...], "gold": index}``, or
    ``{"question", "choices": [...] or {"text": [...], "label": [...]}}`` with the right choice
    under ``answer`` or ``answerKey``: a label, an index, a letter, or the choice itself.

    Raises:
        DataError: The file cannot be read, has no questions, or a line is of no such form; the
            message names file and line.
    """
    lines = read_json_lines(path.expanduser())
    questions = [_parse(row, place) for place, row in lines if row is not None]
    if not questions:
        raise DataError(f"{path.name} holds no questions: write one a line")
    return questions


def take_turns(sources: Iterable[Sequence[Question]]) -> tuple[Question, ...]:
    """Return the questions of all sources: one of each in turn, while it has any.

    >>> take_turns(["ad", "b", "ce"])
    ('a', 'b', 'c', 'd', 'e')
    """
    turns = zip_longest(*sources)
    return tuple(question for turn in turns for question in turn if question is not None)


def compute_digest(questions: Sequence[Question]) -> str:
    """Return 16 hexadecimal digits that identify questions and their order."""
    total = hashlib.sha256()
    for question in questions:
        total.update(json.dumps(asdict(question)).encode() + b"\n")
    return total.hexdigest()[:16]


def _parse(row: Any, place: str) -> Question:
    if not isinstance(row, dict):
        raise DataError(f"{place} is no question: {_FORMS}")
    text = row.get("query", row.get("question"))
    choices, labels = _read_choices(row.get("choices"))
    if not isinstance(text, str) or not text.strip() or len(choices) < 2:
        raise DataError(f"{place} is no question with two choices or more: {_FORMS}")
    answer = next((row[key] for key in ("gold", "answer", "answerKey") if key in row), None)
    index = _find_answer(answer, choices, labels)
    if index is None:
        raise DataError(f"{place}: {answer!r} is none of its {len(choices)} choices")
    context = f"{_format_prompt(row, text)}\nAnswer:"
    return Question(
        prompts=tuple((context, f" {choice}") for choice in choices),
        characters=tuple(len(choice) for choice in choices),
        answer=index,
    )


def _format_prompt(row: Mapping[str, Any], text: str) -> str:
    """Return the question's text for the model; a query has its heading already."""
    return text.rstrip() if "query" in row else f"Question: {text.strip()}"


def _read_choices(value: Any) -> tuple[list[str], list[str]]:
    """Return the texts of the choices and their labels; empty lists for an unknown form."""
    labels = None
    if isinstance(value, dict):
        value, labels = value.get("text"), value.get("label")
        if not isinstance(labels, list):
            return [], []
    if not isinstance(value, list) or not all(isinstance(c, str) and c.strip() for c in value):
        return [], []
    named = list(string.ascii_uppercase) if labels is None else [str(label) for label in labels]
    return (value, named) if len(named) >= len(value) else ([], [])


def _find_answer(answer: Any, choices: Sequence[str], labels: Sequence[str]) -> int | None:
    """Return the index of the right choice, given by label, by index or by its text."""
    if str(answer) in labels[: len(choices)]:
        return labels.index(str(answer))
    if isinstance(answer, str):
        return choices.index(answer) if answer in choices else None
    is_index = isinstance(answer, int) and not isinstance(answer, bool)
    return answer if is_index and 0 <= answer < len(choices) else None
