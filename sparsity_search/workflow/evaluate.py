"""The score of one model, pruned or not, on some text."""

from __future__ import annotations

from dataclasses import dataclass

from sparsity_search.config import RunConfig
from sparsity_search.data.sequences import Request
from sparsity_search.history import Score
from sparsity_search.models.loading import load_model
from sparsity_search.registry import EVALUATORS
from sparsity_search.workflow.monitor import Monitor
from sparsity_search.workflow.session import open_session


@dataclass(frozen=True)
class Evaluation:
    """A score, the sparsity of the prunable weights, and how many tokens were read."""

    score: Score
    sparsity: float
    tokens: int


def evaluate(
    config: RunConfig,
    text: Request,
    *,
    dense: str | None = None,
    monitor: Monitor | None = None,
) -> Evaluation:
    """Score a model.

    Args:
        config: The model and the evaluator.
        text: What to score it on.
        dense: The model to compare with, for evaluators that compare; by default itself.
        monitor: Watches the job.

    Raises:
        SparsitySearchError: Something given is not legal.
    """
    monitor = monitor or Monitor()
    evaluator = EVALUATORS.create(config.evaluator.name, **config.evaluator.parameters)
    session = open_session(config.model, [text], config.study.seed, monitor)
    tokens = session.text[text.purpose]
    reference = session.loaded.model
    if dense is not None:
        with monitor.stage("load dense model"):
            options = config.model.model_dump(include={"dtype", "device", "trust_remote_code"})
            reference = load_model(dense, **options).model
    with monitor.stage("score"):
        score = evaluator.bind(reference, tokens).score(session.loaded.model, range(len(tokens)))
    return Evaluation(score, session.subject.zeros().sparsity, tokens.numel())
