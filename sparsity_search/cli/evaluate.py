"""`evaluate`: the score of a model or checkpoint."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from sparsity_search.cli import options


@options.takes(
    options.MODEL,
    replace(options.EVALUATOR, default="perplexity"),
    options.SEED,
    *options.LOADING,
    *options.CONFIGURATION,
)
def evaluate(
    given: options.Given,
    text: Annotated[
        str, typer.Option(help="file:PATH, hub:NAME[:CONFIG[:SPLIT]], sample or self.")
    ],
    dense: Annotated[
        str | None, typer.Option(help="Model to compare with, e.g. for kl_divergence.")
    ] = None,
    sequences: Annotated[int, typer.Option(min=0, help="How many; 0 for all of the text.")] = 40,
    length: Annotated[int, typer.Option(min=2, help="Tokens in each, at most.")] = 1024,
) -> options.Result:
    """Score a model or a pruned checkpoint on a text.

    sparsity-search evaluate runs/mine/checkpoint --text file:test.txt
    """
    config = given.load()
    from sparsity_search.cli import terminal
    from sparsity_search.data.sequences import Request
    from sparsity_search.report.table import format_number, format_percent
    from sparsity_search.workflow.evaluate import evaluate as run

    request = Request("evaluation", text, sequences, length, config.data.special_tokens)
    with terminal.watch() as monitor:
        found = run(config, request, dense=dense, monitor=monitor)
    read = f"{found.tokens} tokens" if found.tokens else f"{len(found.score.parts)} rows"
    if found.special_tokens != "none":
        read += f" ({found.special_tokens} before each sequence)"
    terminal.say(
        f"{config.evaluator.name} {format_number(found.score.value)} on {read}; "
        f"{format_percent(found.sparsity)} of the prunable weights are zero"
    )
    return {
        "evaluator": config.evaluator.name,
        "score": found.score.value,
        "tokens": found.tokens,
        "rows": len(found.score.parts),
        "special_tokens": found.special_tokens,
        "sparsity": found.sparsity,
    }
