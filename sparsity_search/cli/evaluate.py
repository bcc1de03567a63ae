"""`evaluate`: the score of a model or checkpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from sparsity_search.cli import options


def evaluate(
    model: options.Model,
    text: Annotated[str, typer.Option(help="file:PATH, hub:NAME[:CONFIG[:SPLIT]] or self.")],
    evaluator: Annotated[str, typer.Option(help="See `ls evaluators`.")] = "perplexity",
    dense: Annotated[
        str | None, typer.Option(help="Model to compare with, e.g. for kl_divergence.")
    ] = None,
    sequences: Annotated[int, typer.Option(help="How many; 0 for all of the text.")] = 40,
    length: Annotated[int, typer.Option(help="Tokens in each, at most.")] = 1024,
    seed: options.Seed = None,
    blocks: options.Blocks = None,
    revision: options.Revision = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    offload: options.Offload = False,
    trust_remote_code: options.TrustRemoteCode = False,
    config: options.Config = None,
    set_: options.Set = None,
) -> None:
    """Score a model or a pruned checkpoint on a text.

    sparsity-search evaluate runs/mine/checkpoint --text file:test.txt
    """
    configuration = options.configuration(locals())
    from sparsity_search.cli.terminal import TerminalMonitor, quiet_libraries
    from sparsity_search.cli.terminal import out as console
    from sparsity_search.data.sequences import Request
    from sparsity_search.report.table import number, percent
    from sparsity_search.workflow.evaluate import evaluate as run

    quiet_libraries()
    request = Request("evaluation", text, sequences, length)
    with TerminalMonitor() as monitor:
        found = run(configuration, request, dense=dense, monitor=monitor)
    read = f"{found.tokens} tokens" if found.tokens else f"{len(found.score.parts)} rows"
    console.print(
        f"{evaluator} {number(found.score.value)} on {read}; "
        f"{percent(found.sparsity)} of the prunable weights are zero"
    )
