"""Multiple-choice questions: error or loss of the model's answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor, nn

from sparsity_search.errors import ConfigError, DataError
from sparsity_search.evaluators.tasks.continuations import (
    EncodedContinuation,
    compute_log_likelihoods,
    encode,
)
from sparsity_search.evaluators.tasks.lm_eval import LmEvalScorer, load_tasks
from sparsity_search.evaluators.tasks.questions import (
    Question,
    compute_digest,
    read_questions,
    take_turns,
)
from sparsity_search.interfaces.evaluator import Evaluator, OwnData, Proxy
from sparsity_search.models.running.head import check_head
from sparsity_search.trials.history import Score

Measure = Literal["loss", "error"]

#: Returns the log-likelihood of each choice, one question after another.
_Asker = Callable[[nn.Module, Sequence[int]], list[float]]


@dataclass(frozen=True, kw_only=True)
class TasksEvaluator(Evaluator):
    """Multiple-choice questions from files or lm-eval tasks: loss or error of the answers.

    The score of a choice is the log-likelihood of its tokens after ``Question: …`` and, on the
    next line, ``Answer:``. It is divided by the choice's characters (lm-eval's ``acc_norm``) or
    not (``acc``). The model's answer is the choice with the best score. The loss is the
    cross-entropy of the right choice, in nats, under a softmax over the scores. Unlike the error
    it changes with every weight.

    The questions are the evaluator's own data: row ``r`` has ``examples`` consecutive questions,
    from number ``r · examples`` on. The bound text is not read. Several files or tasks take
    turns, one question of each.

    lm-eval (https://github.com/EleutherAI/lm-evaluation-harness) makes the prompts of its tasks
    and scores them itself; files are scored by the same rules without it.

    Args:
        files: JSON lines with a question each: ``query``, ``choices`` and ``gold``, or
            ``question``, ``choices`` and ``answer`` or ``answerKey``.
        tasks: Names of multiple-choice tasks or groups of lm-eval, in place of files.
        include: Folder with further task files (YAML) for lm-eval.
        num_fewshot: Examples before each question of lm-eval; by default as many as the task
            says.
        examples: Questions in a row.
        measure: ``loss``, or ``error``: 1 - accuracy.
        normalise: Divide log-likelihoods by the choices' characters.
        batch_size: Choices that pass the model at once.
    """

    files: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    include: str | None = None
    num_fewshot: int | None = None
    examples: int = 4
    measure: Measure = "loss"
    normalise: bool = True
    batch_size: int = 16

    def __post_init__(self) -> None:
        for name, value in (("files", self.files), ("tasks", self.tasks)):
            if not isinstance(value, tuple) or not all(isinstance(entry, str) for entry in value):
                raise ValueError(f"{name} must be a list of names, not {value!r}")
        if self.files and self.tasks:
            raise ValueError("tasks asks what files or tasks hold: give one of these settings")
        if self.files and (self.include is not None or self.num_fewshot is not None):
            raise ValueError("include and num_fewshot are for tasks of lm-eval, not for files")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise ValueError(f"num_fewshot must not be negative, not {self.num_fewshot}")
        if self.examples < 1 or self.batch_size < 1:
            raise ValueError("examples and batch_size must be at least 1")
        if self.measure not in get_args(Measure):
            raise ValueError(f"measure must be loss or error, not {self.measure!r}")

    def own_data(self) -> OwnData:
        """Return how many rows the questions make, and their digest.

        Raises:
            DataError: A file cannot be read.
            ConfigError: Nothing is given to ask, lm-eval is missing, or cannot load a task.
        """
        return OwnData(len(self._questions) // self.examples, compute_digest(self._questions))

    def bind(self, dense: nn.Module, tokens: Tensor, tokenizer: Any = None) -> Proxy:  # noqa: ARG002
        """Return a proxy that asks the questions; nothing of the dense model is kept.

        Raises:
            ConfigError: There is no tokenizer, or lm-eval is missing.
            DataError: A file cannot be read, or has fewer questions than a row.
        """
        if tokenizer is None:
            raise ConfigError("tasks needs the model's tokenizer: bind(dense, tokens, tokenizer)")
        self.own_data().check(1, "lower examples, or give more questions")
        if self.tasks:
            return _TasksProxy(self, self._questions, self._make_lm_eval_asker(tokenizer))
        config = dense.config.get_text_config()  # type: ignore[operator, union-attr]
        longest = getattr(config, "max_position_embeddings", None)
        encoder = _Encoder(self._questions, tokenizer, longest)
        check_head(dense, encoder.encode(0)[0].inputs[None])

        def ask(model: nn.Module, indices: Sequence[int]) -> list[float]:
            sequences = [one for index in indices for one in encoder.encode(index)]
            return compute_log_likelihoods(model, sequences, self.batch_size)

        return _TasksProxy(self, self._questions, ask)

    def _make_lm_eval_asker(self, tokenizer: Any) -> _Asker:
        scorer = LmEvalScorer(tokenizer, self.batch_size)

        def ask(model: nn.Module, indices: Sequence[int]) -> list[float]:
            return scorer.log_likelihoods(model, [self._questions[index] for index in indices])

        return ask

    @cached_property
    def _questions(self) -> tuple[Question, ...]:
        """All questions; they are read once, so that the digest is theirs."""
        if not self.files and not self.tasks:
            raise ConfigError(
                "tasks asks what files or tasks hold: give one of these settings, "
                "e.g. --set evaluator.files=[questions.jsonl]"
            )
        if self.tasks:
            return take_turns(load_tasks(self.tasks, self.include, self.num_fewshot))
        return take_turns([read_questions(Path(file)) for file in self.files])


class _Encoder:
    """Tokenises questions when they are first asked."""

    def __init__(self, questions: Sequence[Question], tokenizer: Any, longest: int | None) -> None:
        self._questions = questions
        self._tokenizer = tokenizer
        self._longest = longest
        self._known: dict[int, list[EncodedContinuation]] = {}

    def encode(self, index: int) -> list[EncodedContinuation]:
        """Return the choices of a question."""
        if index not in self._known:
            prompts = self._questions[index].prompts
            sequences = [encode(self._tokenizer, *prompt, self._longest) for prompt in prompts]
            self._known[index] = sequences
        return self._known[index]


class _TasksProxy(Proxy):
    def __init__(
        self, settings: TasksEvaluator, questions: Sequence[Question], ask: _Asker
    ) -> None:
        self._settings = settings
        self._questions = questions
        self._ask = ask

    def score(self, model: nn.Module, rows: Sequence[int]) -> Score:
        """Return the mean loss or error, and that of each row.

        Raises:
            DataError: There are fewer rows.
        """
        size = self._settings.examples
        n_rows = len(self._questions) // size
        if not all(0 <= row < n_rows for row in rows):
            raise DataError(f"the questions make {n_rows} rows of {size}: there is no {max(rows)}")
        indices = [index for row in rows for index in range(row * size, (row + 1) * size)]
        asked = [self._questions[index] for index in indices]
        found = iter(self._ask(model, indices))
        losses = [self._loss(question, found) for question in asked]
        parts = [sum(losses[i : i + size]) / size for i in range(0, len(losses), size)]
        return self.combine(parts)

    def _loss(self, question: Question, found: Iterator[float]) -> float:
        """Return the loss or error of one question; NaN if the model is broken."""
        scores = [next(found) for _ in question.prompts]
        if self._settings.normalise:
            scores = [s / n for s, n in zip(scores, question.characters, strict=True)]
        if not all(map(math.isfinite, scores)):
            return math.nan
        best = max(scores)
        if self._settings.measure == "error":
            return float(scores.index(best) != question.answer)
        total = math.log(sum(math.exp(score - best) for score in scores))
        return total + best - scores[question.answer]
