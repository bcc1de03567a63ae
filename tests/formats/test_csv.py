from __future__ import annotations

import csv
import io

import pytest

from sparsity_search.errors import ProfileError
from sparsity_search.formats.csv import CsvFormat
from sparsity_search.interfaces.format import ProfileDocument
from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.profiles.profile import from_counts
from tests.helpers.documents import PROFILE

BY_HAND = "name,block,role,removed,of\nb.0.q,0,q,3,10\nb.1.q,1,q,0,10\n"


def test_by_hand() -> None:
    profile = CsvFormat().read(BY_HAND).profile
    assert profile.removed == (3, 0)
    assert profile.layout[1] == Unit(name="b.1.q", block=1, role="q", count=10)


def test_columns_in_any_order_from_a_spreadsheet() -> None:
    text = "\ufeffrole,of,removed,note,name,block,sparsity\r\nq,3,1,x,b.q,5,0.3333\r\n"
    profile = CsvFormat().read(text).profile
    assert profile == from_counts(Layout([Unit(name="b.q", block=5, role="q", count=3)]), [1])


def test_written() -> None:
    lines = CsvFormat().write(ProfileDocument(PROFILE)).splitlines()
    assert lines[0] == "name,block,role,removed,of,weights_each,sparsity"
    assert lines[1] == "model.layers.0.self_attn.q_proj,0,q,5,10,1,0.5"
    assert lines[6] == "model.layers.1.mlp.up_proj,1,up,6,30,1,0.2"


def test_names_may_need_quotes() -> None:
    profile = from_counts(Layout([Unit(name='a,"b"\nc', block=0, role="q", count=2)]), [1])
    text = CsvFormat().write(ProfileDocument(profile))
    assert next(iter(csv.DictReader(io.StringIO(text))))["name"] == 'a,"b"\nc'
    assert CsvFormat().read(text).profile == profile


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks the column 'name'"),
        (BY_HAND.replace("removed", "sparsity"), "lacks the column 'removed'"),
        (BY_HAND.replace("3,10", "11,10"), "11 of 10 cannot be removed"),
        (BY_HAND.replace("3,10", "3.0,10"), r"line 2: removed must be an integer"),
        (BY_HAND.replace("3,10", "-3,10"), r"line 2: removed must be an integer"),
        (BY_HAND.replace("3,10", "3,"), r"line 2: of must be an integer from 1, not ''"),
        (BY_HAND.replace("3,10", "3"), r"line 2: of must be an integer from 1, not ''"),
        (BY_HAND.replace("3,10", "0,0"), r"line 2: of must be an integer from 1"),
        (BY_HAND.replace("3,10", "3," + "9" * 30), r"line 2: of must be an integer"),
        (BY_HAND.replace("b.1", "b.0"), "distinct"),
        (BY_HAND.splitlines()[0], "at least one unit"),
        (BY_HAND.replace("b.1", '"b.1'), "not a CSV table"),
        ("name,block,role,removed,of,sparsity\nq,0,q,3,10,0.4\n", "line 2: 3 of 10 is not"),
        ("name,block,role,removed,of,sparsity\nq,0,q,3,10,x\n", "line 2: 'x' is not a finite"),
        ("name,block,role,removed,of,weights_each\nq,0,q,3,10,0\n", "weights_each must be"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        CsvFormat().read(text)
