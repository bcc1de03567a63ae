"""The examples of docs/custom.md, as files in a working folder."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import Tensor

from sparsity_search import (
    Allocator,
    Bounds,
    Budget,
    Evaluator,
    PrunableModel,
    RunRecord,
    SparsityProfile,
)
from sparsity_search.registry import ALLOCATORS, EVALUATORS
from sparsity_search.testing.allocator import AllocatorContract
from sparsity_search.testing.evaluator import EvaluatorContract, TextContract
from sparsity_search.testing.models import save_tiny_model, tiny_text
from sparsity_search.testing.runs import make_run

TEXT = (Path(__file__).parents[1] / "docs/custom.md").read_text("utf-8")
BLOCKS = re.findall(r"(?ms)^```python\n(.*?)^```$", TEXT)
EXAMPLES = {
    source.partition("\n")[0].removeprefix("# "): source for source in BLOCKS if source[0] == "#"
}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    found = tmp_path_factory.mktemp("custom")
    for name, source in EXAMPLES.items():
        (found / name).write_text(source)
    sys.path.append(str(found))
    yield found
    sys.path.remove(str(found))


def test_examples_are_short() -> None:
    assert set(EXAMPLES) == {"wrong.py", "ends.py", "loop.py"}
    assert max(len(source.splitlines()) for source in EXAMPLES.values()) <= 36


class TestEnds(AllocatorContract):
    @pytest.fixture
    def allocator(self) -> Allocator:
        return ALLOCATORS.create("ends:Ends")


class TestWrong(EvaluatorContract, TextContract):
    @pytest.fixture
    def evaluator(self) -> Evaluator:
        return EVALUATORS.create("wrong:Wrong")


def test_ends_are_spared(tiny_subject: PrunableModel, tiny_tokens: Tensor) -> None:
    ends = ALLOCATORS.create("ends:Ends", spared=0.3)
    bounds = Bounds.of(tiny_subject.layout)
    profile = ends.allocate(tiny_subject, tiny_tokens, Budget(0.5), bounds)
    first, *middle, last = profile.grouped("block").values()
    assert first == pytest.approx(last, abs=0.01)
    assert all(mean > first + 0.25 for mean in middle)


def test_the_loop_keeps_the_best_profile(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    (tmp_path / "text.txt").write_text(tiny_text())
    out = tmp_path / "profile.json"
    best = importlib.import_module("loop").find_best(
        str(model), f"file:{tmp_path / 'text.txt'}", 0.5, out
    )
    assert SparsityProfile.load(out) == best
    assert best.sparsity == pytest.approx(0.5, abs=0.01)


def test_a_run_is_read_as_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "runs" / "mine", rounds=2)
    monkeypatch.chdir(tmp_path)
    (source,) = [block for block in BLOCKS if "load_run" in block]
    exec(compile(source, "custom.md", "exec"), {})
    shown = capsys.readouterr().out
    assert "searched" in shown
    assert RunRecord.read(Path("runs/mine")).shipped is not None
