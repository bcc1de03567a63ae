"""The tasks of lm-eval: loading their questions, and its own scoring of a model in memory."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import nn

from sparsity_search.errors import ConfigError, MissingExtraError
from sparsity_search.evaluators.tasks.questions import Question

#: The seed of few-shot examples that lm-eval itself has by default.
_FEWSHOT_SEED = 1234


def load_tasks(
    names: Sequence[str], include: str | None, num_fewshot: int | None
) -> list[list[Question]]:
    """Return the questions of lm-eval tasks, with the prompts that it makes.

    Args:
        names: Tasks, or groups of them.
        include: Folder with further task files; None for none.
        num_fewshot: Examples before each question; None for what the task says.

    Returns:
        The questions of each task, in the order of its documents.

    Raises:
        MissingExtraError: lm-eval is not installed.
        ConfigError: lm-eval cannot load a task, or a task is not one of questions with one right
            choice.
    """
    tasks = _import_module("lm_eval.tasks")
    try:
        loaded = _load_objects(tasks, list(names), include)
        for task in loaded:
            if num_fewshot is not None:
                task.set_config(key="num_fewshot", value=num_fewshot)
            task.set_fewshot_seed(seed=_FEWSHOT_SEED)
            task.build_all_requests()
    except Exception as error:  # its kinds are many: names, files, downloads, templates
        raise ConfigError(
            f"lm-eval cannot load the tasks {', '.join(names)}: {_first_line(error)}"
        ) from error
    return [_build_questions(task) for task in loaded]


class LmEvalScorer:
    """lm-eval's own scoring of models in memory.

    Args:
        tokenizer: The models'; lm-eval writes a padding token to a copy.
        batch_size: Choices that pass a model at once.
    """

    def __init__(self, tokenizer: Any, batch_size: int) -> None:
        self._tokenizer = copy.deepcopy(tokenizer)
        self._batch_size = batch_size
        self._wrapped: tuple[nn.Module, Any] | None = None

    def log_likelihoods(self, model: nn.Module, questions: Sequence[Question]) -> list[float]:
        """Return the log-likelihood of each choice, one question after another.

        Raises:
            MissingExtraError: lm-eval is not installed.
        """
        instance = _import_module("lm_eval.api.instance").Instance
        requests = [
            instance(request_type="loglikelihood", doc={}, arguments=prompt, idx=index)
            for question in questions
            for index, prompt in enumerate(question.prompts)
        ]
        with torch.inference_mode():
            found = self._wrapper(model).loglikelihood(requests, disable_tqdm=True)
        return [float(log_likelihood) for log_likelihood, _ in found]

    def _wrapper(self, model: nn.Module) -> Any:
        """Return the model as lm-eval has it; made once, since each time logs two warnings."""
        if self._wrapped is None or self._wrapped[0] is not model:
            wrapper = _import_module("lm_eval.models.huggingface").HFLM(
                pretrained=model,
                tokenizer=self._tokenizer,
                batch_size=self._batch_size,
                softmax_dtype=torch.float32,  # the model's own can be too coarse
            )
            self._wrapped = model, wrapper
        return self._wrapped[1]


def _import_module(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f'tasks of lm-eval need {error.name}: pip install "sparsity-search[tasks]"'
        ) from error


def _load_objects(tasks: Any, names: list[str], include: str | None) -> list[Any]:
    """Return task objects; older releases of lm-eval give a tree of groups."""
    manager = tasks.TaskManager(include_path=include)
    if hasattr(manager, "load"):
        return list(manager.load(names)["tasks"].values())
    return list(_flatten(tasks.get_task_dict(names, manager)))


def _flatten(tree: dict[Any, Any]) -> Iterator[Any]:
    """Yield the tasks of a tree of groups."""
    for node in tree.values():
        if isinstance(node, dict):
            yield from _flatten(node)
        else:
            yield node


def _build_questions(task: Any) -> list[Question]:
    name = task.config.task
    if task.config.output_type != "multiple_choice":
        raise ConfigError(
            f"the task {name} is of the type {task.config.output_type}: give multiple_choice ones"
        )
    by_document = groupby(task.instances, key=lambda instance: instance.doc_id)
    return [_build_question(task, name, list(instances)) for _, instances in by_document]


def _build_question(task: Any, name: str, instances: Sequence[Any]) -> Question:
    document = instances[0].doc
    choices = task.doc_to_choice(document)
    # of tasks whose choices are in the context, lm-eval takes the answer from `doc_to_text`
    answer = (task.doc_to_text if task.multiple_input else task.doc_to_target)(document)
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    if not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise ConfigError(f"the task {name} has a question without one right choice: {answer!r}")
    prompts = [tuple(instance.args[:2]) for instance in instances[: len(choices)]]
    return Question(tuple(prompts), tuple(len(choice) for choice in choices), answer)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
