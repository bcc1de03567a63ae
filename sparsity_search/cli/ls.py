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
) -> dict[str, dict[str, str]]:
    """List plugins and search spaces, with their settings.

    sparsity-search ls allocators
    """
    from sparsity_search.cli import terminal
    from sparsity_search.config.presets import list_presets, summarise_preset
    from sparsity_search.errors import UnknownNameError, suggest_name
    from sparsity_search.plans.plan import list_plans
    from sparsity_search.registry import (
        ALLOCATORS,
        EVALUATORS,
        FORMATS,
        MEASURES,
        PRUNERS,
        SEARCHERS,
        SENSITIVITIES,
        TRACKERS,
        UNITS,
        Registry,
    )
    from sparsity_search.spaces.files import load_space, space_names

    registries: dict[str, Registry[Any]] = {
        "pruners": PRUNERS,
        "units": UNITS,
        "allocators": ALLOCATORS,
        "sensitivities": SENSITIVITIES,
        "searchers": SEARCHERS,
        "evaluators": EVALUATORS,
        "measures": MEASURES,
        "formats": FORMATS,
        "trackers": TRACKERS,
    }
    kinds = [*registries, "spaces", "plans", "presets"]
    if kind is not None and kind not in kinds:
        raise UnknownNameError(f"nothing is called {kind!r}: {suggest_name(kind, kinds)}")
    found: dict[str, dict[str, str]] = {}
    for name in [kind] if kind else kinds:
        if name == "spaces":
            lines = {space: load_space(space).description for space in space_names()}
        elif name == "plans":
            lines = list_plans()
        elif name == "presets":
            lines = {preset: summarise_preset(preset) for preset in list_presets()}
        else:
            lines = registries[name].summaries()
        last = sorted(lines, key=lambda plugin: lines[plugin].startswith(EXPERIMENTAL))
        found[name] = {plugin: lines[plugin] for plugin in last}
        terminal.show_list(name, found[name])
    return found
