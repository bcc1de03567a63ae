"""`convert`: a profile that moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsity_search.cli import options
from sparsity_search.errors import ConfigError, show_value

if TYPE_CHECKING:
    from sparsity_search.workflow.convert import ConversionResult

_SETTING = "FORMAT.KEY=VALUE"
_MODEL = Annotated[
    str | None, typer.Option(help="The model to convert to: hub id, folder, .gguf, smollm2.")
]


@options.takes(
    replace(options.MODEL, kind=_MODEL, default=None),
    options.SPARSITY,
    options.BOUNDS,
    *options.LOADING,
)
def convert(
    given: options.Given,
    profile: Annotated[Path, typer.Argument(help="A profile, of any format of `ls formats`.")],
    out: options.OutFile,
    to: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="Of --out; by default from its name.")
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option("--from", metavar="FORMAT", help="Of PROFILE; by default from its name."),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="A profile.json with the sizes of PROFILE's units.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar=_SETTING, help="A setting of a format."),
    ] = None,
) -> options.Result:
    """Move a profile to another target, another model, or the format of another tool.

    sparsity-search convert profile.json --sparsity 0.7 --out denser.json

    sparsity-search convert profile.json --model smollm2 --out moved.json

    sparsity-search convert profile.json --to llm_compressor --out recipe.yaml

    sparsity-search convert levels.txt --reference profile.json --out found.json
    --set evopress.sparsity=0.7 --set evopress.step=1000000
    """
    from sparsity_search.workflow.convert import ConversionRequest
    from sparsity_search.workflow.convert import convert as run

    of_model = given.values["model"] is not None
    useless = [o.name for o in options.LOADING if given.values[o.name] and not of_model]
    if useless:
        raise ConfigError(f"--{useless[0].replace('_', '-')} is about a model: give --model too")
    # without a model the configuration has no use for its name
    config = given.load({} if of_model else {"model.name": str(profile)})
    job = ConversionRequest(
        source=profile,
        out=out,
        source_format=from_,
        out_format=to,
        settings=_parse_settings(set_ or []),
        reference=reference,
        model=config.model if of_model else None,
        budget=config.budget,
    )
    from sparsity_search.cli import terminal

    if of_model:
        with terminal.watch() as monitor:
            found = run(job, monitor=monitor)
    else:
        found = run(job)
    terminal.say(_describe(out, found))
    return {
        "profile": out,
        "format": found.format,
        "how": found.how,
        **options.count_removed(found.profile),
        "rounded": found.rounded,
        "unmatched": found.unmatched,
    }


def _parse_settings(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return settings by format from ``FORMAT.KEY=VALUE`` texts.

    Raises:
        ConfigError: A text is not of that form.

    >>> _parse_settings(["evopress.step=1000", "evopress.sparsity=0.7"])
    {'evopress': {'step': 1000, 'sparsity': 0.7}}
    """
    from sparsity_search.config.load import parse_setting

    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        key, value = parse_setting(text, _SETTING)
        name, dot, setting = key.partition(".")
        if not (dot and name and setting):
            raise ConfigError(f"--set needs {_SETTING}, not {show_value(text)}")
        found.setdefault(name, {})[setting] = value
    return found


def _describe(out: Path, found: ConversionResult) -> str:
    """Return how a profile was converted, for people."""
    profile = found.profile
    lines = [
        f"{out}: {found.how}, {profile.n_removed} of {profile.layout.n_weights} weights removed "
        f"({profile.sparsity:.2%}), format {found.format}"
    ]
    if found.rounded:
        lines.append(f"the format rounds: it has other counts for {found.rounded} units")
    if found.how == "transferred" and found.unmatched:
        roles = ", ".join(found.unmatched)
        lines.append(f"roles that the source does not have follow its blocks: {roles}")
    return "\n".join(lines)
