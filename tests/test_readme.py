"""The README's Python example runs as it stands, on a tiny model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import sparsity_search
from sparsity_search.testing.models import save_tiny_model, tiny_text

README = Path(__file__).parent.parent / "README.md"


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(code.strip().splitlines()) <= 25
    save_tiny_model(tmp_path / "smollm2")
    (tmp_path / "test.txt").write_text(tiny_text(4000))
    small = code.replace('"smollm2"', '"./smollm2"').replace("512", "16")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    exec(compile(small, "README.md", "exec"), namespace)
    profile = namespace["profile"]
    assert isinstance(profile, sparsity_search.SparsityProfile)
    assert profile.n_removed == round(0.6 * profile.layout.n_weights)
    assert (tmp_path / "pruned" / "config.json").exists()


def test_every_public_name_exists() -> None:
    for name in sparsity_search.__all__:
        assert getattr(sparsity_search, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sparsity_search.nothing
