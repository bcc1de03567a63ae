"""Options that several commands share: each is declared once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsity_search.errors import ConfigError

if TYPE_CHECKING:
    from sparsity_search.config.schema import RunConfig

#: The key of the configuration that each option of a command stands for.
KEYS = {
    "model": "model.name",
    "checkpoint": "model.name",
    "exclude": "model.exclude",
    "blocks": "model.blocks",
    "units": "model.units",
    "revision": "model.revision",
    "dtype": "model.dtype",
    "device": "model.device",
    "offload": "model.offload",
    "trust_remote_code": "model.trust_remote_code",
    "sparsity": "budget.sparsity",
    "saving": "budget.saving",
    "measure": "measure.name",
    "bounds": "budget.bounds",
    "space": "space",
    "pruner": "pruner.name",
    "pattern": "pruner.pattern",
    "searcher": "searcher.name",
    "evaluator": "evaluator.name",
    "sensitivity": "sensitivity.name",
    "initial": "initial",
    "hints": "hints",
    "finalise": "finalise.name",
    "stages": "study.stages",
    "calibration": "data.calibration",
    "search_text": "data.search_text",
    "final_text": "data.final_text",
    "rounds": "study.rounds",
    "minutes": "study.minutes",
    "seed": "study.seed",
    "storage": "study.storage",
    "workers": "study.workers",
}

Model = Annotated[
    str, typer.Argument(help="Hub id, local folder, .gguf file, or smollm2 (packaged).")
]
Sparsity = Annotated[float, typer.Option(help="Fraction of all prunable weights to remove.")]
Saving = Annotated[
    float | None,
    typer.Option(help="Fraction to save, with --measure or for a space with options."),
]
Measure = Annotated[
    str | None,
    typer.Option(help="What is saved: flops, latency (see `ls measures`), or a prices.json."),
]
OptionalSparsity = Annotated[
    float | None, typer.Option("--sparsity", help="Fraction of all prunable weights to remove.")
]
Pruner = Annotated[
    str | None, typer.Option(help="Local pruner; see `ls pruners`. MASK+UPDATE composes two.")
]
Pattern = Annotated[
    str | None,
    typer.Option(help="Which weights compete: layer, row, block, or N:M (keep N of M)."),
]
Calibration = Annotated[
    str | None,
    typer.Option(
        help="Calibration text: file:PATH, hub:NAME[:CONFIG[:SPLIT]], or self (sampled)."
    ),
]
Bounds = Annotated[
    list[str] | None,
    typer.Option("--bounds", metavar="ROLE=LOW:HIGH", help="Sparsity limits of a role."),
]
Exclude = Annotated[
    str | None, typer.Option(metavar="REGEX", help="Leave units with matching names alone.")
]
Blocks = Annotated[
    str | None,
    typer.Option(metavar="REGEX", help="Name of the decoder blocks, if not found by themselves."),
]
Units = Annotated[
    str | None,
    typer.Option(help="What is removed: weights, width, heads, sublayers, blocks or experts."),
]
Seed = Annotated[int | None, typer.Option(help="Of all random draws.")]
Revision = Annotated[str | None, typer.Option(help="Revision of a hub model.")]
Dtype = Annotated[str | None, typer.Option(help="auto, bfloat16, float16 or float32.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, ...")]
Offload = Annotated[
    bool, typer.Option("--offload", help="Hold one block at a time: for models beyond memory.")
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
]
Config = Annotated[
    Path | None,
    typer.Option(help="YAML file with the configuration of a run, or see `ls presets`."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one configuration key."),
]
Out = Annotated[Path, typer.Option(help="Where the result is written.")]


def configuration(options: Mapping[str, Any]) -> RunConfig:
    """Return the configuration that a command's options mean.

    Args:
        options: Values by parameter name, as ``locals()`` gives them at the start of a command;
            those without a key in the configuration are left out.

    Raises:
        ConfigError: An option is not legal.
    """
    from sparsity_search.config.load import load_config

    given = {KEYS[name]: value for name, value in options.items() if name in KEYS}
    for key in ("model.trust_remote_code", "model.offload"):
        given[key] = given.get(key) or None
    given["budget.bounds"] = parse_bounds(given.get("budget.bounds"))
    for key in ("initial", "hints"):
        given[key] = given[key].split(",") if given.get(key) else None
    return load_config(options.get("config"), given, options.get("set_") or [])


def parse_bounds(texts: Sequence[str] | None) -> dict[str, tuple[float, float]] | None:
    """Return sparsity limits by role from ``ROLE=LOW:HIGH`` texts.

    Raises:
        ConfigError: A text is not of that form.

    >>> parse_bounds(["q=0.2:0.8"])
    {'q': (0.2, 0.8)}
    """
    if not texts:
        return None
    found = {}
    for text in texts:
        role, _, limits = text.partition("=")
        low, _, high = limits.partition(":")
        try:
            found[role] = (float(low), float(high))
        except ValueError as error:
            raise ConfigError(f"--bounds needs ROLE=LOW:HIGH, not {text!r}") from error
    return found
