"""Wrong inputs, made from right ones by a seed: nasty values in their places, and broken bytes."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import yaml

#: Values of the wrong kind, size or shape; each is JSON.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 1.7, -0.0, 1e308, 1e-300, 1e-12, float("inf"), float("nan")),
    *(10**9, 2**63 - 1, 2**63, -(10**18), 10**30, 10**400),
    *("", " ", "0.5", "nan", "\ud800", "\0", "\x1b[31m", "a\nb", "x" * 5000, "[/red]", "$_{"),
    *("<img src=x onerror=alert(1)>", "|", "../../x", "/dev/null", "(a+)+$", "[", "2:4", "0:0"),
    *("9:1", "*:99999999999", "1:" + "9" * 5000, "os:getcwd", "a.json", "0x10", "2020-13-45"),
    *([], {}, [[]], [1, "a", None], [[1.0], [2.0]], {"": 1}, {"name": 3}, {"name": "x", "y": [1]}),
    [0] * 999,
)
#: Texts that are no document of any format, or a costly one.
TEXTS: tuple[bytes, ...] = (
    *(b"", b"\n", b"\0", b"null", b"[]", b"{}", b"3", b'"x"', b"\xff\xfea\0", b"\xef\xbb\xbf"),
    *(b"a: &a [*a]", b"[" * 10**5, b"{" * 999, b'{"a":' * 10**5, b"- " * 5000, b"9" * 5000),
    b"a: &a [x, x]\nb: &b [*a, *a, *a]\nc: &c [*b, *b, *b]\nd: [*c, *c, *c]",
    *(b"!!python/object/apply:os.getcwd []", b"? [a]\n: b", b"a: 1\na: 2", b"--- a\n--- b"),
    *(b"a: 2020-13-45", b"a: !!binary x", b"a: 'x", b"%YAML 9\n---\n", b"key\tvalue\n", b"a,b\n1"),
)


def choose_value(rng: random.Random) -> Any:
    """Return a copy of one of `VALUES`."""
    return copy.deepcopy(rng.choice(VALUES))


def mutate_value(value: Any, rng: random.Random) -> Any:
    """Return a JSON value with one to three of its parts replaced, removed or doubled."""
    changed = {"": copy.deepcopy(value)}
    for _ in range(rng.choice((1, 1, 2, 3))):
        holder, key = rng.choice(list(_list_places(changed)))
        action = rng.choice(("replace", "replace", "replace", "remove", "rename"))
        if action == "replace" or holder is changed:
            holder[key] = choose_value(rng)
        elif action == "remove":
            del holder[key]
        elif isinstance(holder, dict):
            holder[f"{key}x"] = holder.pop(key)
        else:
            holder.append(copy.deepcopy(holder[key]))
    return changed[""]


def mutate_text(text: bytes, rng: random.Random) -> bytes:
    """Return a text with bytes removed, doubled, flipped or put in; or another text."""
    if rng.random() < 0.25:
        return rng.choice(TEXTS)
    start = rng.randrange(len(text) + 1)
    end = min(len(text), start + rng.choice((1, 3, 30, 300)))
    junk = rng.choice((b"\xff", b"\0", b"{", b"]", b"*a", b'\\"', b"e999", b"\xed\xa0\x80", b"\r"))
    middle = rng.choice((b"", 2 * text[start:end], junk, junk + text[start:end]))
    return text[:start] + middle + text[end:]


def to_json(value: Any) -> bytes:
    """Return a value as JSON, also if it is not legal JSON."""
    return json.dumps(value).encode()


def to_yaml(value: Any) -> bytes:
    """Return a value as YAML."""
    try:
        return yaml.safe_dump(value, sort_keys=False).encode("utf-8", "surrogatepass")
    except ValueError:  # an integer with more digits than Python prints
        return to_json(str(type(value)))


def make_file(value: Any, dump: Callable[[Any], bytes], rng: random.Random) -> bytes:
    """Return the contents of a file: a wrong value of the right format, or a broken text."""
    if rng.random() < 0.6:
        return dump(mutate_value(value, rng))
    return mutate_text(dump(value), rng)


def _list_places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container in a value with each of its keys."""
    keys = range(len(value)) if isinstance(value, list) else list(value)
    for key in keys:
        yield value, key
        if isinstance(value[key], list | dict):
            yield from _list_places(value[key])
