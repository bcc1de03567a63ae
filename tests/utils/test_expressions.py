"""Regular expressions of users: as Python reads them, and none that never ends."""

from __future__ import annotations

import re

import pytest

from sparsity_search.errors import ConfigError
from sparsity_search.utils.expressions import Expression

NAMES = ("model.layers.0.self_attn.q_proj", "model.layers.11.mlp.down_proj", "", "Q", "a.b")


@pytest.mark.parametrize(
    "text",
    [
        "proj",
        r"layers\.(0|1)\.",
        "^model",
        "_proj$",
        "(?i)q",
        r"\d\d",
        "[^a-z.]",
        "x*",
        "",
        "a.b|Q",
    ],
)
def test_finds_and_matches_what_python_does(text: str) -> None:
    expression = Expression(text, "--exclude")
    for name in NAMES:
        assert expression.finds(name) == bool(re.search(text, name))
        assert expression.matches(name) == bool(re.fullmatch(text, name))


@pytest.mark.parametrize("text", [r"(\w+\.?)+!", "(a|aa)+$!", "(.*)*!", "(x+x+)+y"])
def test_no_expression_tries_all_ways(text: str) -> None:
    assert not Expression(text, "--exclude").finds("x" * 40 + "a" * 40)  # would not end in Python


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(", "unclosed group"),
        ("*", "repetition"),
        ("a)|(b", "unopened group"),
        ("(?!a)b", "look-around"),
        (r"(a)\1", "backreferences"),
        ("(((.{1000}){1000}){1000})", "size limit"),
        ("(" * 5000, ""),
    ],
)
def test_refused_in_one_line(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=r"--exclude .*is not a regular") as refusal:
        Expression(text, "--exclude")
    assert reason in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 300
