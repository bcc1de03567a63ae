from __future__ import annotations

import json
from typing import Any

import pytest

from sparsity_search.errors import ProfileError
from sparsity_search.formats.profile import ProfileFormat
from sparsity_search.interfaces.format import ProfileDocument
from sparsity_search.profiles.layout import Unit
from tests.helpers.documents import PROFILE

BY_HAND = """{"format": 1, "units": {
  "b.0.up": {"block": 0, "role": "up", "removed": 2, "of": 5, "weights_each": 3},
  "b.4.q":  {"block": 4, "role": "q", "removed": 0, "of": 7, "weights_each": 1}
}, "removes": "width", "target": 0.25}"""


def test_by_hand() -> None:
    document = ProfileFormat().read(BY_HAND)
    assert document.profile.removed == (2, 0)
    up, q = document.profile.layout
    assert up == Unit(name="b.0.up", block=0, role="up", count=5, cost=3)
    assert q == Unit(name="b.4.q", block=4, role="q", count=7)
    assert document.facts == {"removes": "width", "target": 0.25}


def test_facts_go_along() -> None:
    facts = {"removes": "weights", "model": {"name": "m", "revision": None}}
    text = ProfileFormat().write(ProfileDocument(PROFILE, facts))
    assert ProfileFormat().read(text).facts == facts
    assert json.loads(text)["removed"] == 43


def spoiled(key: str, value: Any) -> str:
    stored = json.loads(BY_HAND)
    stored["units"]["b.4.q"][key] = value
    return json.dumps(stored)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "corrupt"),
        ('{"format": NaN}', "NaN"),
        ("[" * 100_000, "corrupt"),
        ("[]", "not a sparsity profile"),
        ('{"model.layers.0": 0.5}', "not a sparsity profile.*another format"),
        (BY_HAND.replace('"format": 1', '"format": 2'), "format 2"),
        (spoiled("of", 7.0), "of: .*integer, not 7.0"),
        (spoiled("of", 0), "of: .*not 0"),
        (spoiled("of", 10**30), "too large"),
        (spoiled("block", -1), "block: .*not -1"),
        (spoiled("weights_each", True), "weights_each: .*integer, not True"),
        (spoiled("removed", 8), "cannot be removed"),
        (BY_HAND.replace('"role": "q",', ""), "role"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        ProfileFormat().read(text)
