"""The score of one model, pruned or not, on some text."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sparsity_search.config.schema import RunConfig
from sparsity_search.data.sequences import Request
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.session import open_session
from sparsity_search.models.io.loading import load_model
from sparsity_search.registry import EVALUATORS, Factory
from sparsity_search.trials.history import Score

#: How the dense model is loaded too.
_OF_BOTH = {"dtype", "device", "trust_remote_code", "blocks", "offload"}


@dataclass(frozen=True)
class EvaluationResult:
    """The outcome of `evaluate`.

    Attributes:
        score: The score.
        sparsity: Sparsity of the prunable weights.
        tokens: Tokens of text that were read; 0 for an evaluator with its own data.
        special_tokens: Names of the special tokens that each sequence starts with, or ``none``.
    """

    score: Score
    sparsity: float
    tokens: int
    special_tokens: str


def evaluate(
    config: RunConfig,
    text: Request,
    *,
    dense: str | None = None,
    monitor: Monitor | None = None,
) -> EvaluationResult:
    """Score a model.

    Args:
        config: The model and the evaluator.
        text: The text to score it on. An evaluator with its own data does not read it: it scores
            as many of its rows as sequences are requested.
        dense: The model to compare with, for evaluators that compare; by default itself.
        monitor: Watches the job.

    Raises:
        SparsitySearchError: Something given is not legal.
    """
    monitor = monitor or Monitor()
    evaluator = Factory().resolve(EVALUATORS, config.evaluator.spec)
    own = evaluator.own_data()
    n_rows = text.n_sequences or (0 if own is None else own.n_rows)
    if own is not None:
        own.check(n_rows, "ask for fewer sequences, or for 0: all of it")
    requests = [] if own is not None else [text]
    session = open_session(config.model, requests, config.study.seed, monitor)
    tokens = session.text.get(text.purpose, torch.empty((0, text.length), dtype=torch.int64))
    reference = session.loaded.model
    if dense is not None:
        with monitor.step("load dense model"):
            options = config.model.model_dump(include=_OF_BOTH)
            reference = load_model(dense, **options).model
    with monitor.step("score"):
        proxy = evaluator.bind(reference, tokens, session.loaded.tokenizer)
        score = proxy.score(session.loaded.model, range(n_rows if own else len(tokens)))
    special = session.drawn[text.purpose].special_tokens if requests else "none"
    return EvaluationResult(score, session.subject.zeros().sparsity, tokens.numel(), special)
