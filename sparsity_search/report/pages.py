"""Pages of HTML that load nothing, with charts inside; they need the extra ``report``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sparsity_search.errors import MissingExtraError, MissingExtraWarning
from sparsity_search.report.table import NONE
from sparsity_search.utils.extras import require

if TYPE_CHECKING:
    from sparsity_search.report.charts import Chart


def check_pages() -> None:
    """Check that pages and figures can be drawn.

    Raises:
        MissingExtraError: The extra ``report`` is not installed.
    """
    require("a report", "report", "matplotlib", "plotly", "jinja2")


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


def render_page(
    template: str, context: Mapping[str, Any], charts: Mapping[str, Chart], **captions: str
) -> str:
    """Return a page that needs no other file.

    Args:
        template: Name of the template in ``templates``.
        context: Its variables; all texts are escaped.
        charts: Its charts by name, in the order in which they are shown.
        captions: What they show, by name.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from sparsity_search.report.charts import read_library

    environment = Environment(
        loader=PackageLoader("sparsity_search", "report/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {}  # charts keep their order
    library = read_library() if charts else ""
    more = {"charts": charts, "captions": captions, "library": library}
    return environment.get_template(template).render({**context, **more})


def list_provenance(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return where results come from, by name, from ``run.json`` or ``compare.json``."""
    model = facts.get("model", {})
    provenance = {
        "command": facts.get("command"),
        "started": facts.get("created"),
        "model": model.get("name"),
        "model revision": model.get("revision"),
        "model digest": model.get("digest"),
        **({"removes": facts["removes"]} if "removes" in facts else {}),
        "device": facts.get("device"),
        "number type": facts.get("dtype"),
        "threads": facts.get("threads"),
        "versions": ", ".join(f"{k} {v}" for k, v in facts.get("versions", {}).items()),
    }
    return {key: NONE if value in (None, "") else str(value) for key, value in provenance.items()}


def tabulate_text(text: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return a table of the texts: a row for each purpose."""
    keys = list(dict.fromkeys(key for entry in text.values() for key in entry))
    rows = [
        (purpose, *(str(entry.get(key, NONE)) for key in keys)) for purpose, entry in text.items()
    ]
    return {"header": ("purpose", *keys), "rows": rows}
