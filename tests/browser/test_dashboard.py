"""A study in the real optuna-dashboard: what people can read of its trials."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sparsity_search.profiles.budget import Budget
from sparsity_search.report.plots import draw_profile, encode_png
from sparsity_search.searchers.evolution import EvolutionSearcher
from sparsity_search.spaces.files import load_space
from sparsity_search.study.study import Limits, Study
from sparsity_search.testing.problems import TOY_LADDER, SeparableProblem
from sparsity_search.testing.runs import build_run_layout
from sparsity_search.trials.artifacts import attach
from sparsity_search.trials.storages import open_journal
from sparsity_search.trials.store import Store
from tests.browser.test_pages import IMAGES, WIDE, browser  # noqa: F401  (a fixture)

pytestmark = [pytest.mark.browser, pytest.mark.enable_socket]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The dashboard of a small study."""
    pytest.importorskip("optuna_dashboard", reason="needs the extra `browser`")
    file = tmp_path_factory.mktemp("run") / "journal.log"
    space = load_space("per_linear").of_levels.build(build_run_layout(6), Budget(0.6), {})
    Study(
        space=space,
        searcher=EvolutionSearcher(),
        objective=SeparableProblem(space),
        ladder=TOY_LADDER,
        store=Store(open_journal(file), "search", {"seed": 0}, space),
    ).run(Limits(rounds=8))
    figure = file.with_name("profile.png")
    profile = Budget(0.6).uniform(build_run_layout(6))
    figure.write_bytes(encode_png(draw_profile(profile, target=0.6)))
    attach(open_journal(file), "search", figure, file.with_name("artifacts"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = shutil.which("optuna-dashboard", path=str(Path(sys.executable).parent))
    assert program is not None
    kept = ["--artifact-dir", str(file.with_name("artifacts"))]
    server = subprocess.Popen([program, str(file), "--port", str(port), *kept])
    found = f"http://127.0.0.1:{port}/dashboard"
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(found, timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield found
    finally:
        server.terminate()
        server.wait()


def test_trials_show_rung_roles_and_depth(browser: Any, address: str) -> None:  # noqa: F811
    page = browser.new_context(viewport=WIDE).new_page()
    page.goto(f"{address}/studies/0/trials")
    page.wait_for_selector("text=sparsity of depth 1/6")
    shown = page.text_content("body")
    for name in ("rung", "sparsity of q", "sparsity of up", "sparsity of depth 6/6"):
        assert name in shown
    page.goto(f"{address}/studies/0")
    page.wait_for_selector("text=Hyperparameter Importance")
    page.wait_for_selector("text=sparsity of")
    page.wait_for_timeout(2000)  # its charts move into place
    page.screenshot(path=IMAGES / "dashboard.png")


def test_the_profile_is_an_artefact(browser: Any, address: str) -> None:  # noqa: F811
    page, host = browser.new_context(viewport=WIDE).new_page(), address.removesuffix("/dashboard")
    (kept,) = page.request.get(f"{host}/api/studies/0").json()["artifacts"]
    assert kept["filename"] == "profile.png"
    picture = page.request.get(f"{host}/artifacts/0/{kept['artifact_id']}")
    assert picture.ok
    assert picture.body().startswith(b"\x89PNG")
