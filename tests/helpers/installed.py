"""Packages that look installed: a folder on the path, with the metadata that pip would leave."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def install(
    site: Path,
    name: str,
    modules: Mapping[str, str],
    entry_points: Mapping[str, Mapping[str, str]],
) -> None:
    """Write a distribution into a folder that is on the path.

    Args:
        site: The folder.
        name: Of the distribution.
        modules: Source texts by module name.
        entry_points: Targets by name, by group: ``{"sparsity_search.pruners": {"mine": "a:B"}}``.
    """
    for module, source in modules.items():
        (site / f"{module}.py").write_text(source)
    info = site / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [
        line
        for group, points in entry_points.items()
        for line in (f"[{group}]", *(f"{key} = {target}" for key, target in points.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
