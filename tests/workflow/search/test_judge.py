from __future__ import annotations

import math

import pytest
from scipy.stats import ttest_rel  # type: ignore[import-untyped]

from sparsity_search.workflow.search.judge import Verdict


def verdict(*parts: float) -> Verdict:
    mean = sum(parts) / len(parts)
    return Verdict({"score": mean if math.isfinite(mean) else None}, parts)


NOISY = (verdict(1.0, 2.0, 3.0, 4.0), verdict(0.9, 2.1, 2.8, 4.1))
CLEAR = (verdict(1.0, 2.0, 3.0, 4.0), verdict(0.9, 1.8, 2.9, 3.8))


def test_means_alone_decide_without_a_confidence() -> None:
    for best, found in (NOISY, CLEAR):
        assert found.beats(best, None)
        assert not best.beats(found, None)
        assert not best.beats(best, None)


@pytest.mark.parametrize("confidence", [0.6, 0.8, 0.95, 0.999])
def test_a_confidence_is_that_of_a_paired_test(confidence: float) -> None:
    for best, found in (NOISY, CLEAR):
        p = ttest_rel(best.parts, found.parts, alternative="greater").pvalue
        assert found.beats(best, confidence) == (p < 1 - confidence)


def test_a_finite_score_beats_one_that_is_not() -> None:
    assert verdict(1.0, 2.0).beats(verdict(math.nan, 1.0), 0.9)
    assert not verdict(math.nan, 1.0).beats(verdict(1.0, 2.0), 0.9)
    assert not verdict(math.nan, 1.0).beats(verdict(math.nan, 1.0), 0.9)
