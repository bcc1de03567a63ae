"""Text of others: a plain value, or one line that says what is wrong with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from sparsity_search.config.presets import get_preset_file, list_presets
from sparsity_search.errors import ConfigError
from sparsity_search.spaces.reading import read_space, space_names
from sparsity_search.utils import reading
from sparsity_search.utils.reading import (
    check_plain,
    parse_json,
    parse_yaml,
    read_json,
    read_lines,
    read_text,
    read_yaml,
)

BOMB = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("2:4", "2:4"),  # YAML 1.1 has 124
        ("1e-5", 1e-5),  # YAML 1.1 has a text
        ("010", 10),  # YAML 1.1 has 8
        ("2020-13-45", "2020-13-45"),
        ("[1_000, -3, +4.5, .5, 5., -.inf, ~, yes, Off]",
         [1000, -3, 4.5, 0.5, 5.0, -float("inf"), None, True, False]),
        ("{a: {b: c}, 1: [d, 'e']}", {"a": {"b": "c"}, 1: ["d", "e"]}),
        ("'1'", "1"),
        ("&name [1]", [1]),
    ],
)  # fmt: skip
def test_yaml(text: str, value: Any) -> None:
    found = parse_yaml(text)
    assert found == value
    assert type(found) is type(value)


def test_files_of_the_package_are_read_as_yaml_has_them() -> None:
    for name in list_presets():
        file = get_preset_file(name)
        assert read_yaml(file) == yaml.safe_load(file.read_text())
    assert all(read_space(name)["description"] for name in space_names())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "aliases"),
        ("&a [*a]", "aliases"),
        ("!!python/object/apply:os.getcwd []", "tags"),
        ("!!binary x", "tags"),
        ("{a: 1, a: 2}", "'a' stands twice"),
        ("{[1]: 2}", "no plain value"),
        ("[" * 100 + "]" * 100, "nested more than 50 deep"),
        ("[" * 100_000, "nested more than 50 deep"),
        ("9" * 5000, "digits"),
        ("9" * 30, "too large"),
        (".nan", "nan is not a number"),
        (r'"\ud800"', "half a surrogate pair"),
        (r'{"\ud800": 1}', "half a surrogate pair"),
        ("a: b: c", "line 1, column 5"),
        ("--- a\n--- b", "single document"),
        ("\0", "not YAML"),
        ("x" * (reading.MAX_YAML_BYTES + 1), "larger than 4 MiB"),
    ],
)
def test_refused_yaml(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as refusal:
        parse_yaml(text)
    assert len(str(refusal.value)) < 300
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        ("[1, 2", "line 1 column 6"),
        ("[" * 100_000, "nested"),
        ("[" * 60 + "]" * 60, "nested more than 50 deep"),
        ('{"a": 1, "a": 2}', "'a' stands twice"),
        ("NaN", "NaN is not a number"),
        ("9" * 5000, "digits"),
        ("1" + "0" * 400, "too large"),
        ("[-1e999]", "'-1e999' is too large"),
        (r'["\ud800"]', "half a surrogate pair"),
    ],
)
def test_refused_json(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as refusal:
        parse_json(text)
    assert len(str(refusal.value)) < 300


def test_plain_values() -> None:
    check_plain({"a": [1, 2.5, None, True, "é\n", (2**63 - 1, -(2**63))], 1: float("inf")})
    assert parse_json(r'{"a": "\ud83d\ude00"}') == {"a": "😀"}  # a whole pair


@pytest.mark.parametrize("read", [read_text, read_json, read_yaml, lambda p: list(read_lines(p))])
def test_files_that_cannot_be_read(tmp_path: Path, read: Any) -> None:
    (tmp_path / "latin").write_bytes("é".encode("latin-1"))
    for path, reason in {
        tmp_path / "absent": "No such file",
        tmp_path: "Is a directory",
        tmp_path / "latin": "is not UTF-8 text: convert it first",
        tmp_path / ("x" * 999): "name too long",
        tmp_path / "a\0b": "null",
    }.items():
        with pytest.raises(ConfigError, match=reason) as refusal:
            read(path)
        assert "Errno" not in str(refusal.value)


def test_a_file_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="zero is larger than 4 MiB"):
        read_yaml(Path("/dev/zero"))
    monkeypatch.setattr(reading, "MAX_BYTES", 1000)
    with pytest.raises(ConfigError, match="line 1 has no end"):
        list(read_lines(Path("/dev/zero")))


def test_a_mark_at_the_start_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbf[1]\r\n[2]")
    assert read_text(tmp_path / "x") == "[1]\r\n[2]"
    assert [(n, parse_json(line)) for n, line in read_lines(tmp_path / "x")] == [
        (1, [1]),
        (2, [2]),
    ]


def test_a_pipe_is_a_file(tmp_path: Path) -> None:
    reading_end, writing_end = os.pipe()
    os.write(writing_end, b"a: 1")
    os.close(writing_end)
    assert read_yaml(Path(f"/dev/fd/{reading_end}")) == {"a": 1}
    os.close(reading_end)
