"""What commands print at two widths: no line is longer, and a picture of each for the docs."""

from __future__ import annotations

import html
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sparsity_search.testing.runs import make_run
from tests.browser.test_pages import IMAGES, browser  # noqa: F401  (a fixture)

pytestmark = [pytest.mark.browser, pytest.mark.enable_socket]

PAGE = """<body style="margin: 0; background: #161616; color: #e4e4e4"><pre style="margin: 16px;
font: 14px/1.35 'DejaVu Sans Mono', monospace; white-space: pre-wrap; width: {}ch">{}</pre>
</body>"""


def run(folder: Path, width: int, *arguments: str) -> str:
    """Return a command line and what it prints in a terminal of some width."""
    done = subprocess.run(
        [sys.executable, "-m", "sparsity_search", *arguments],
        cwd=folder,
        env={**os.environ, "COLUMNS": str(width)},
        capture_output=True,
        text=True,
        check=True,
    )
    return f"$ sparsity-search {' '.join(arguments)}\n{done.stdout}"


@pytest.mark.parametrize("width", [80, 140])
def test_a_report_and_the_help_fit(browser: Any, tmp_path: Path, width: int) -> None:  # noqa: F811
    make_run(tmp_path / "mine", rounds=6, finalise="alps")
    shown = run(tmp_path, width, "report", "mine")
    helped = run(tmp_path, width, "search", "--help")
    tables = [line for line in shown.splitlines() if "  " in line and not line.startswith("$")]
    assert max(map(len, helped.splitlines())) <= width
    assert max(map(len, tables)) <= max(width, 100)  # shorter, its names would be cut
    for name, text in {"report": shown, "help": helped}.items():
        page = browser.new_page()
        page.set_content(PAGE.format(width, html.escape(text)))
        page.locator("pre").screenshot(path=IMAGES / f"terminal-{name}-{width}.png")
        page.close()
