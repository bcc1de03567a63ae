"""The README's Python example runs as it stands, on a tiny model, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import sparsity_search
from sparsity_search.testing.models import save_tiny_model

README = Path(__file__).parent.parent / "README.md"


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MkDocs form them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(code.strip().splitlines()) <= 25
    save_tiny_model(tmp_path / "smollm2")
    small = code.replace('"smollm2"', '"./smollm2"').replace("512", "16")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    exec(compile(small, "README.md", "exec"), namespace)
    profile = namespace["profile"]
    assert isinstance(profile, sparsity_search.SparsityProfile)
    assert profile.n_removed == round(0.6 * profile.layout.n_weights)
    assert (tmp_path / "pruned" / "config.json").exists()


def test_links_lead_to_files_and_headings() -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#([^)]+))?\)", README.read_text())
    assert links
    for target, anchor in links:
        page = README.parent / target
        assert page.exists(), target
        assert not anchor or anchor in anchors(page), f"{target}#{anchor}"


def test_every_public_name_exists() -> None:
    for name in sparsity_search.__all__:
        assert getattr(sparsity_search, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sparsity_search.nothing
