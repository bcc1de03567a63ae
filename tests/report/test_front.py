from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparsity_search.report import plots
from sparsity_search.report.front import write_front
from sparsity_search.testing.runs import make_run


def test_profiles_are_drawn_beside_uniform_with_their_pruner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "0.5", rounds=1)
    make_run(tmp_path / "0.6", rounds=1, finalise="alps")
    drawn: list[Any] = []
    draw = plots.draw_perplexity

    def watch(curves: Any, against: str) -> Any:
        drawn.append(curves)
        return draw(curves, against)

    monkeypatch.setattr(plots, "draw_perplexity", watch)
    write_front(tmp_path)
    found = {
        pruner: {name: [point.mean for point in points] for name, points in lines.items()}
        for pruner, lines in drawn[0].items()
    }
    assert found == {
        "wanda": {"uniform": [40.0], "searched": [27.0]},
        "alps": {"uniform": [20.0], "searched": [13.5]},
    }
