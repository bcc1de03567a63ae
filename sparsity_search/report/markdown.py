"""Markdown that holds names of others: of files, layers, models and plugins."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from sparsity_search.errors import escape_controls

_SPECIAL = re.compile(r"([\\`*\[\]|~])")


def escape(text: str) -> str:
    r"""Return a text that Markdown and HTML show as it is, in one line.

    >>> escape("a|b <img src=x>")
    'a\\|b &lt;img src=x&gt;'
    """
    line = " ".join(escape_controls(text).split())
    return _SPECIAL.sub(r"\\\1", html.escape(line, quote=False))


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 0) -> str:
    """Return a table.

    Args:
        header: Names of the columns.
        rows: The cells, in Markdown.
        left: Columns of text, if those behind them are numbers; 0 if there are none.
    """
    numbers = len(header) - left if left else 0
    rule = ["---"] * (len(header) - numbers) + ["---:"] * numbers
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *rows))
