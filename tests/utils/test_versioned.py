"""Every fault of a JSON file is one line that names the file, and raises the kind's own error."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from sparsity_search.errors import ConfigError, ProfileError
from sparsity_search.utils.files import write_json
from sparsity_search.utils.shapes import Shape
from sparsity_search.utils.versioned import VersionedJson


class Catch(Shape):
    fish: list[str]
    weight: float = 0.0


KIND = VersionedJson("a list of fish", 3, Catch, ProfileError)


def test_reads_what_was_written(tmp_path: Path) -> None:
    value = {"format": 3, "fish": ["cod"], "more": None}
    write_json(tmp_path / "x.json", value)
    assert KIND.read(tmp_path / "x.json") == value


def test_the_checksum_is_of_all_else(tmp_path: Path) -> None:
    value = {"fish": ("cod",), "pond": {"b": 1.5, "a": (1, None)}, 9: "nine", 10: "ten"}
    KIND.write(tmp_path / "x.json", value)
    stored = json.loads((tmp_path / "x.json").read_text())
    checksum = stored.pop("checksum")
    pond = {"b": 1.5, "a": [1, None]}
    assert stored == {"format": 3, "fish": ["cod"], "pond": pond, "9": "nine", "10": "ten"}
    canonical = json.dumps(stored, sort_keys=True, separators=(",", ":"))
    assert checksum == hashlib.sha256(canonical.encode()).hexdigest()[:16]
    assert KIND.read(tmp_path / "x.json") == stored
    write_json(tmp_path / "x.json", {"checksum": checksum, **stored})  # in another order
    assert KIND.read(tmp_path / "x.json") == stored


def test_any_digit_that_was_changed_is_told(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    KIND.write(file, {"fish": ["cod 7"], "weights": [1.25, 40]})
    whole = file.read_text()
    places = [place for place, letter in enumerate(whole) if letter.isdigit()]
    assert len(places) > 8
    for place in places:
        digit = str((int(whole[place]) + 1) % 10)
        file.write_text(whole[:place] + digit + whole[place + 1 :])
        with pytest.raises(ProfileError, match=r"x\.json is ") as caught:
            KIND.read(file)
        assert len(str(caught.value).splitlines()) == 1
    file.write_text(whole.replace("cod", "eel"))
    with pytest.raises(ProfileError, match=r"x\.json is damaged.*checksum"):
        KIND.read(file)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["corrupt"]),
        (b'{"format": 3, "fi', ["corrupt"]),
        (b'{"format": 3, "fish": [], "fish": []}', ["corrupt", "'fish' stands twice"]),
        (b'{"format": 3, "fish": [], "x": "\\ud800"}', ["corrupt", "surrogate"]),
        (b'{"format": 3, "fish": [], "x": ' + b"9" * 5000 + b"}", ["corrupt", "digits"]),
        (b"[" * 100_000, ["corrupt"]),
        (b"[]", ["not a list of fish", "no JSON object"]),
        (b"null", ["not a list of fish"]),
        (b'{"fish": []}', ["not a list of fish", "no 'format'"]),
        (b'{"format": 3}', ["not a list of fish", "no 'fish'"]),
        (b'{"format": 4, "birds": []}', ["a list of fish", "format 4", "reads format 3"]),
        (b'{"format": "3", "fish": []}', ["format '3'"]),
        (b'{"format": true, "fish": []}', ["format True"]),
        (b'{"format": 3.0, "fish": []}', ["format 3.0"]),
        (b'{"format": 3, "fish": [1]}', ["not a list of fish", "fish.0", "not 1"]),
        (b'{"format": 3, "fish": [], "weight": 1e999}', ["1e999", "too large"]),
        (b'{"format": 3, "fish": ' + str([1] * 999).encode() + b"}", ["and 995 more"]),
    ],
)
def test_faults(tmp_path: Path, content: bytes, words: list[str]) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(content)
    with pytest.raises(ProfileError) as caught:
        KIND.read(file)
    message = str(caught.value)
    assert all(word in message for word in [str(file), *words]), message
    assert len(message.splitlines()) == 1


def test_a_file_that_is_absent_is_no_fault_of_its_contents(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*x\.json"):
        KIND.read(tmp_path / "x.json")
    (tmp_path / "x.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"x\.json is not UTF-8 text: convert it"):
        KIND.read(tmp_path / "x.json")


def test_a_value_needs_no_file() -> None:
    with pytest.raises(ProfileError, match=r"^not a list of fish"):
        KIND.check({"format": 3})
