"""Published settings by name: each YAML file here is a configuration for ``--config NAME``."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def list_presets() -> list[str]:
    """Return the names of all presets, sorted."""
    return sorted(file.stem for file in _get_folder().glob("*.yaml"))


def get_preset_file(name: str) -> Path:
    """Return the file of a preset, which need not exist."""
    return _get_folder() / f"{name}.yaml"


def summarise_preset(name: str) -> str:
    """Return one line about a preset: the comment in its first line."""
    return get_preset_file(name).read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def _get_folder() -> Path:
    return Path(str(files(__name__)))
