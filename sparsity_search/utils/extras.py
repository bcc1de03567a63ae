"""Optional packages: each comes with an extra, ``pip install "sparsity-search[EXTRA]"``."""

from __future__ import annotations

from importlib.util import find_spec

from sparsity_search.errors import MissingExtraError


def require(purpose: str, extra: str, *modules: str) -> None:
    """Check that modules of an extra are installed; call it before work that needs them.

    Args:
        purpose: Subject of the message, e.g. ``"a report"``.
        extra: Name of the extra in ``pyproject.toml``.
        modules: Names that are imported later.

    Raises:
        MissingExtraError: A module is not installed.

    >>> require("a report", "report", "json")
    """
    for module in modules:
        if find_spec(module) is None:
            raise MissingExtraError(
                f'{purpose} needs {module}: pip install "sparsity-search[{extra}]"'
            )
