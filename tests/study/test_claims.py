from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sparsity_search.study.claims import Claims


def test_a_place_is_one_workers(tmp_path: Path) -> None:
    one, two = Claims(tmp_path), Claims(tmp_path)
    assert (one.seat, two.seat) == (0, 1)
    with one.claim(3) as first, two.claim(3) as second, two.claim(4) as other:
        assert (first, second, other) == (True, False, True)
    with two.claim(3) as later:
        assert later


def test_a_claim_ends_with_an_error(tmp_path: Path) -> None:
    one, two = Claims(tmp_path), Claims(tmp_path)
    with pytest.raises(KeyError), one.claim(0):
        raise KeyError
    with two.claim(0) as mine:
        assert mine


def test_claims_and_seats_of_the_dead_are_free(tmp_path: Path) -> None:
    code = (
        "import os; from pathlib import Path; from sparsity_search.study.claims import Claims;"
        f"claims = Claims(Path({str(tmp_path)!r})); claim = claims.claim(0);"
        "print(claims.seat, claim.__enter__(), flush=True); os.kill(os.getpid(), 9)"
    )
    dead = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert dead.stdout == "0 True\n"
    claims = Claims(tmp_path)
    assert claims.seat == 0
    with claims.claim(0) as mine:
        assert mine


@pytest.mark.parametrize("n", [1, 5, 12])
def test_every_worker_comes_to_every_place(tmp_path: Path, n: int) -> None:
    workers = [Claims(tmp_path) for _ in range(5)]
    orders = [worker.order(n) for worker in workers]
    assert all(sorted(order) == list(range(n)) for order in orders)
    firsts = [order[0] for order in orders[:4]]
    assert firsts == [0, n // 2, n // 4, 3 * n // 4]
