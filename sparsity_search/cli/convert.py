"""`convert`: a profile that moves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsity_search.cli import options
from sparsity_search.errors import ConfigError

if TYPE_CHECKING:
    from sparsity_search.workflow.convert import Converted


def convert(
    profile: Annotated[Path, typer.Argument(help="A profile, of any format of `ls formats`.")],
    out: options.Out,
    to: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="Of --out; by default from its name.")
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option("--from", metavar="FORMAT", help="Of PROFILE; by default from its name."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The model to convert to: hub id, folder, .gguf, smollm2.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="A profile.json with the sizes of PROFILE's units.")
    ] = None,
    sparsity: options.OptionalSparsity = None,
    bounds: options.Bounds = None,
    exclude: options.Exclude = None,
    blocks: options.Blocks = None,
    units: options.Units = None,
    revision: options.Revision = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    offload: options.Offload = False,
    trust_remote_code: options.TrustRemoteCode = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FORMAT.KEY=VALUE", help="A setting of a format."),
    ] = None,
) -> None:
    """Move a profile to another target, another model, or the format of another tool.

    sparsity-search convert profile.json --sparsity 0.7 --out denser.json

    sparsity-search convert profile.json --model smollm2 --out moved.json

    sparsity-search convert profile.json --to llm_compressor --out recipe.yaml

    sparsity-search convert levels.txt --reference profile.json --out found.json
    --set evopress.sparsity=0.7 --set evopress.step=1000000
    """
    from sparsity_search.config.schema import BudgetSection
    from sparsity_search.workflow.convert import Conversion
    from sparsity_search.workflow.convert import convert as run

    of_model = {key: value for key, value in locals().items() if key in _OF_MODEL}
    if model is None and any(of_model.values()):
        useless = next(key for key, value in of_model.items() if value).replace("_", "-")
        raise ConfigError(f"--{useless} is about a model: give --model too")
    job = Conversion(
        source=profile,
        out=out,
        source_format=from_,
        out_format=to,
        settings=_settings(set_ or []),
        reference=reference,
        model=options.configuration(of_model).model if model is not None else None,
        budget=BudgetSection(sparsity=sparsity, bounds=options.parse_bounds(bounds) or {}),
    )
    from sparsity_search.cli.terminal import TerminalMonitor, quiet_libraries
    from sparsity_search.cli.terminal import out as console

    if model is None:
        found = run(job)
    else:
        quiet_libraries()
        with TerminalMonitor() as monitor:
            found = run(job, monitor=monitor)
    console.print(_told(out, found), markup=False, soft_wrap=True)


#: Options that say which model, and how it is loaded.
_OF_MODEL = {
    *("model", "exclude", "blocks", "units", "revision", "dtype", "device"),
    *("offload", "trust_remote_code"),
}


def _settings(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return settings by format from ``FORMAT.KEY=VALUE`` texts.

    Raises:
        ConfigError: A text is not of that form.

    >>> _settings(["evopress.step=1000", "evopress.sparsity=0.7"])
    {'evopress': {'step': 1000, 'sparsity': 0.7}}
    """
    import yaml

    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        name, dot, setting = key.partition(".")
        if not (equals and dot and name and setting):
            raise ConfigError(f"--set needs FORMAT.KEY=VALUE, not {text!r}")
        try:
            found.setdefault(name, {})[setting] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {text}: the value is not YAML") from error
    return found


def _told(out: Path, found: Converted) -> str:
    """Return what became of a profile, for people."""
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
