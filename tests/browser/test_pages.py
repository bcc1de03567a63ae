"""The pages in Chromium: no error, charts that answer the pointer, light, dark and narrow.

`make browser` runs this; the pictures of docs/images are made here.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sparsity_search.report import write_report
from sparsity_search.report.front import FRONT_PAGE, write_front
from sparsity_search.report.runs_page import read_runs, write_runs
from sparsity_search.testing.runs import make_run

pytestmark = [pytest.mark.browser, pytest.mark.enable_socket]

IMAGES = Path(__file__).parents[2] / "docs" / "images"
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("Chromium is not installed")
    with api.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report, a comparison of runs and a front, by name of their pictures."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [
        make_run(folder / "0.5", rounds=6),
        make_run(folder / "0.6", rounds=6, finalise="alps"),
    ]
    write_front(folder)
    return {
        "report": write_report(runs[1]),
        "runs": write_runs(read_runs(runs), folder / "runs.html"),
        "front": folder / FRONT_PAGE,
    }


def open_page(browser: Any, path: Path, **context: Any) -> tuple[Any, list[str]]:
    """Return a page that is drawn, and the list of its errors, which grows."""
    page = browser.new_context(**context).new_page()
    errors: list[str] = []

    def note(message: Any) -> None:
        if message.type in ("error", "warning"):
            errors.append(message.text)

    def refuse(request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            errors.append(request.url)

    page.on("console", note)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", refuse)
    page.goto(path.as_uri())
    page.wait_for_function("document.querySelectorAll('.chart').length > 0")
    page.wait_for_function(
        "[...document.querySelectorAll('.chart')].every(c => c.querySelector('.main-svg'))"
    )
    return page, errors


@pytest.mark.parametrize("name", ["report", "runs", "front"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_open_without_an_error(
    browser: Any, pages: dict[str, Path], name: str, scheme: str
) -> None:
    page, errors = open_page(browser, pages[name], viewport=WIDE, color_scheme=scheme)
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert back == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 22, 22)"}[scheme]
    page.screenshot(path=IMAGES / f"{name}-{scheme}.png")
    assert errors == []


@pytest.mark.parametrize("name", ["report", "runs", "front"])
def test_pages_are_readable_on_a_phone(browser: Any, pages: dict[str, Path], name: str) -> None:
    page, errors = open_page(browser, pages[name], viewport=NARROW, color_scheme="light")
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
    page.screenshot(path=IMAGES / f"{name}-narrow.png")
    assert errors == []


def test_the_button_changes_the_theme_of_page_and_charts(
    browser: Any, pages: dict[str, Path]
) -> None:
    page, errors = open_page(browser, pages["report"], viewport=WIDE, color_scheme="light")
    colour = "getComputedStyle(document.querySelector('#chart-steps .xtitle')).fill"
    assert page.evaluate(colour) == "rgb(34, 34, 34)"
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.wait_for_function(f"{colour} === 'rgb(228, 228, 228)'")
    page.click("#theme")
    page.wait_for_function(f"{colour} === 'rgb(34, 34, 34)'")
    assert errors == []


def test_the_pointer_shows_unit_and_counts(browser: Any, pages: dict[str, Path]) -> None:
    page, errors = open_page(browser, pages["report"], viewport=WIDE, color_scheme="light")
    chart = page.locator("#chart-map .nsewdrag").first
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + 10)
    page.wait_for_selector("#chart-map .hovertext")
    shown = page.text_content("#chart-map .hovertext")
    assert "layers.0.q" in shown
    assert "weights removed" in shown
    assert errors == []
