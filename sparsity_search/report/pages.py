"""Pages of HTML that load nothing, with figures inside; they need the extra ``report``."""

from __future__ import annotations

import base64
import warnings
from typing import Any

from sparsity_search.errors import MissingExtraError, MissingExtraWarning
from sparsity_search.utils.extras import require


def check_pages() -> None:
    """Check that pages and figures can be drawn.

    Raises:
        MissingExtraError: The extra ``report`` is not installed.
    """
    require("a report", "report", "matplotlib", "jinja2")


def can_draw_pages() -> bool:
    """Return whether pages and figures can be drawn; a missing extra gives a warning.

    Jobs ask before their work, and leave out pages and figures if they cannot be drawn.
    """
    try:
        check_pages()
    except MissingExtraError as error:
        warnings.warn(f"pages and figures are left out: {error}", MissingExtraWarning, 2)
        return False
    return True


def fill(template: str, **values: Any) -> str:
    """Return a page as HTML.

    Args:
        template: Name of a file in this folder.
        values: All that the template shows; text is escaped.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("sparsity_search", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(values)


def embed(image: bytes) -> str:
    """Return a PNG as the text that a page holds."""
    return base64.b64encode(image).decode()
