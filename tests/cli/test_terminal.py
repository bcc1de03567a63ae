from __future__ import annotations

import signal
from math import inf

import pytest

from sparsity_search.cli import terminal
from sparsity_search.cli.terminal import TerminalMonitor
from sparsity_search.trials.history import Fidelity, Measurement, Score


def told(
    capsys: pytest.CaptureFixture[str], *searches: list[tuple[int, int, Fidelity, float]]
) -> list[str]:
    """Return the lines printed for the measurements of searches: round, rung, tokens, score."""
    monitor = TerminalMonitor(rounds=3)
    for measured in searches:
        with monitor.show("search", None):
            for round_, rung, fidelity, value in measured:
                score = Score(value, (value,))
                about = {"round": round_, "rung": rung, "fidelity": fidelity, "score": score}
                monitor.measured(Measurement(candidate=(0,), **about), top=1)  # type: ignore[arg-type]
    lines = capsys.readouterr().err.splitlines()
    return [line.rsplit(",", 1)[0] for line in lines if line.startswith("round")]


def test_a_better_score_is_told_beside_the_start(capsys: pytest.CaptureFixture[str]) -> None:
    few, many = Fidelity(512), Fidelity(2048)
    measured = [(0, 1, many, 4.0), (1, 0, few, 1.0), (1, 1, many, 3.0), (2, 1, many, 3.5)]
    assert told(capsys, measured) == [
        "round 0, best 4.0000 (+0.0% vs the start)",
        "round 1, best 3.0000 (-25.0% vs the start)",
    ]


def test_scores_on_other_tokens_are_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = Fidelity(2048, 0), Fidelity(2048, 1)
    measured = [(0, 1, first, 2.0), (1, 1, second, 3.0), (1, 1, second, 3.5), (1, 1, second, 2.5)]
    assert told(capsys, measured) == [
        "round 0, best 2.0000 (+0.0% vs the start)",
        "round 1, best 3.0000",
        "round 1, best 2.5000",
    ]


def test_a_resumed_search_is_not_compared_with_fewer_tokens(
    capsys: pytest.CaptureFixture[str],
) -> None:
    measured = [(4, 0, Fidelity(512), 1.0), (4, 1, Fidelity(2048), 3.0)]
    assert told(capsys, measured) == ["round 4, best 3.0000"]


def test_a_failed_candidate_is_no_best_and_no_start(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = Fidelity(2048, 0), Fidelity(2048, 1)
    measured = [(0, 1, first, inf), (0, 1, first, 4.0), (1, 1, second, inf), (1, 1, second, 3.0)]
    assert told(capsys, measured) == ["round 0, best 4.0000", "round 1, best 3.0000"]


def test_names_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    name = "r[/red]x [bold]y[/bold] :smile: \x1b[31m"
    shown = "r[/red]x [bold]y[/bold] :smile: \\x1b[31m"
    with TerminalMonitor().show(name, None):
        pass
    terminal.say(name)
    terminal.show_table([name], [[name]], width=200)
    captured = capsys.readouterr()
    assert captured.err.startswith(f"{shown}: 0.0 s")
    assert [line.strip() for line in captured.out.splitlines() if "red" in line] == [shown] * 3


def test_each_search_or_stage_starts_anew(capsys: pytest.CaptureFixture[str]) -> None:
    """A better score of the search before is no best of this one."""
    many = Fidelity(2048)
    searches = [[(0, 1, many, 0.65)], [(0, 1, many, 1.4), (1, 1, many, 1.2)]]
    assert told(capsys, *searches) == [
        "round 0, best 0.6500 (+0.0% vs the start)",
        "round 0, best 1.4000 (+0.0% vs the start)",
        "round 1, best 1.2000 (-14.3% vs the start)",
    ]


def test_the_second_signal_ends_at_once() -> None:
    """It must pass what catches the first one to ship the best candidate so far."""
    monitor = TerminalMonitor()
    monitor._interrupt(signal.SIGINT, None)
    assert monitor.stopped()
    with pytest.raises(SystemExit) as ended:
        monitor._interrupt(signal.SIGINT, None)
    assert ended.value.code == 130


def test_the_step_and_the_time_of_the_whole_job_are_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    monitor = TerminalMonitor()
    assert monitor._at.describe() == ""
    monitor.at_step("gauss_newton", 4, 9, 754.4)
    assert capsys.readouterr().err == "step 4 of 9: gauss_newton\n"
    assert monitor._at.describe() == "step 4 of 9, 12 min 34 s left"
    monitor.at_step("search", 10, 12, inf)
    assert monitor._at.describe() == "step 10 of 12"
    monitor.at_step("search", 10, 12, -5.0)
    assert monitor._at.describe() == "step 10 of 12, 0.0 s left"


def test_numbers_stand_right_and_texts_left(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.show_table(("a", "b", "c"), [("x", "1", "y"), ("xx", "10", "yyyy")], align="lrl")
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines() if "x" in line]
    assert [line.split() for line in lines] == [["x", "1", "y"], ["xx", "10", "yyyy"]]
    assert lines[0].index("1") == lines[1].index("10") + 1
    assert lines[0].index("y") == lines[1].index("yyyy")
