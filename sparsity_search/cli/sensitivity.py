"""`sensitivity`: the losses of every unit at every level."""

from __future__ import annotations

from sparsity_search.cli import options


@options.takes(
    options.MODEL,
    options.SENSITIVITY,
    options.PRUNER,
    options.PATTERN,
    options.CALIBRATION,
    options.SEED,
    *options.LOADING,
    *options.CONFIGURATION,
)
def sensitivity(given: options.Given, out: options.OutFile) -> options.Result:
    """Measure the losses of each unit once; `solve` then finds the profile for any sparsity.

    sparsity-search sensitivity smollm2 --pruner wanda --out scores.json

    sparsity-search solve scores.json --sparsity 0.7 --out profile.json
    """
    config = given.load()
    from sparsity_search.cli import terminal
    from sparsity_search.workflow.sensitivity import sensitivity as run

    with terminal.watch() as monitor:
        scores = run(config, out, monitor=monitor)
    levels = sum(map(len, scores.counts))
    terminal.say(f"{out}: losses of {len(scores.layout)} units at {levels} levels in all")
    return {"scores": out, "units": len(scores.layout), "levels": levels}
