"""The folder for results that can be recomputed."""

from __future__ import annotations

import os
from pathlib import Path


def get_cache_folder() -> Path:
    """Return ``$SPARSITY_SEARCH_CACHE``, by default ``~/.cache/sparsity_search``."""
    folder = os.environ.get("SPARSITY_SEARCH_CACHE", "~/.cache/sparsity_search")
    return Path(folder).expanduser()
