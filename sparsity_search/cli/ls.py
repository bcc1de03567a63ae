"""`ls`: which plugins and spaces there are."""

from __future__ import annotations

from typing import Annotated, Any

import typer

#: What the registry says first of a plugin that loses to a simpler one; such are listed last.
EXPERIMENTAL = "experimental: "


def ls(
    kind: Annotated[
        str | None,
        typer.Argument(help="pruners, units, allocators, sensitivities, searchers, …"),
    ] = None,
) -> dict[str, Any]:
    """List the names of plugins, spaces, plans and presets; of one kind also what each does.

    sparsity-search ls allocators
    """
    from sparsity_search.cli.output import tell_loading
    from sparsity_search.config.presets import list_presets, summarise_preset
    from sparsity_search.errors import UnknownNameError, suggest_name
    from sparsity_search.plans.plan import list_plans
    from sparsity_search.registry import KINDS
    from sparsity_search.spaces.files import load_space, space_names

    names = {
        **{kind: registry.names for kind, registry in KINDS.items()},
        "spaces": space_names,
        "plans": list_plans,
        "presets": list_presets,
    }
    if kind is None:
        found = {each: list(list_names()) for each, list_names in names.items()}
        _show_names(found)
        return found
    if kind not in names:
        raise UnknownNameError(f"nothing is called {kind!r}: {suggest_name(kind, names)}")
    if kind == "spaces":
        lines = {space: load_space(space).description for space in space_names()}
    elif kind == "plans":
        lines = list_plans()
    elif kind == "presets":
        lines = {preset: summarise_preset(preset) for preset in list_presets()}
    else:
        tell_loading()
        lines = KINDS[kind].summaries()
    from sparsity_search.cli.terminal import show_list

    last = sorted(lines, key=lambda plugin: lines[plugin].startswith(EXPERIMENTAL))
    described = {plugin: lines[plugin] for plugin in last}
    show_list(kind, described)
    return {kind: described}


def _show_names(found: dict[str, list[str]]) -> None:
    from sparsity_search.cli.terminal import say, show_list

    show_list("names", {kind: ", ".join(names) for kind, names in found.items()})
    say("`sparsity-search ls KIND` says what each does, with its settings.")
