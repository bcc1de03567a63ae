from __future__ import annotations

import pytest

from sparsity_search.config.load import load_config
from sparsity_search.errors import ConfigError
from sparsity_search.workflow.search.building import configure_study

GIVEN = {"model.name": "tiny", "budget.sparsity": 0.6}
SETTINGS = {
    "hints": ["gradients"],
    "ladder": {"fresh": True, "candidates": 24},
    "study": {"rounds": 5},
}


def test_a_step_decides_what_the_user_left_open() -> None:
    found = configure_study(load_config(None, GIVEN), SETTINGS)
    assert found.hints == ["gradients"]
    assert (found.ladder.fresh, found.ladder.candidates) == (True, 24)
    assert found.study.rounds == 5


def test_what_the_user_sets_precedes_the_step() -> None:
    asked = load_config(None, {**GIVEN, "hints": ["fisher"], "ladder.candidates": 8})
    found = configure_study(asked, SETTINGS)
    assert found.hints == ["fisher"]
    assert (found.ladder.fresh, found.ladder.candidates) == (True, 8)


def test_settings_that_are_not_legal_are_one_line() -> None:
    with pytest.raises(ConfigError, match=r"a search in the plan: .*fesh") as caught:
        configure_study(load_config(None, GIVEN), {"ladder": {"fesh": True}})
    assert "\n" not in str(caught.value)
