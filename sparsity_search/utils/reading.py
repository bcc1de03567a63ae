"""Text that others wrote: the one place where files and options are decoded and parsed.

Whatever a text holds, it is a plain value or one line that says what is wrong with it. A value
that is accepted can be printed, stored as JSON and walked through: it is not deep, its numbers
are finite 64-bit integers or floats, and its texts are Unicode.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from sparsity_search.errors import (
    ConfigError,
    SparsitySearchError,
    show_value,
    suggest_file,
    told_of,
)

#: Largest text, in bytes: the reader of YAML is slow, and takes fifty times a text's memory.
MAX_BYTES, MAX_YAML_BYTES = 2**30, 2**22
#: Most lists and mappings in one another.
MAX_DEPTH = 50
_CHUNK = 2**20
_TOO_DEEP = f"it is nested more than {MAX_DEPTH} deep"


def read_text(
    path: Path, limit: int = MAX_BYTES, *, error: type[SparsitySearchError] = ConfigError
) -> str:
    """Return the text of a file, without a byte-order mark.

    Args:
        path: The file.
        limit: Most bytes.
        error: Raised for a file that cannot be read, is not UTF-8, or has more bytes.

    Raises:
        SparsitySearchError: As ``error``.
    """
    content = bytearray()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                content += chunk
                if len(content) > limit:
                    raise error(f"{path} is larger than {limit // 2**20} MiB: name another")
        return content.decode("utf-8-sig")
    except SparsitySearchError:
        raise
    except (OSError, ValueError) as fault:
        raise _describe(path, fault, error) from fault


def read_lines(
    path: Path, *, error: type[SparsitySearchError] = ConfigError
) -> Iterator[tuple[int, str]]:
    """Yield the number, from 1, and the text of each line of a file that may be large.

    Args:
        path: The file.
        error: Raised for a file that cannot be read, is not UTF-8, or has a line of more than
            `MAX_BYTES`.

    Raises:
        SparsitySearchError: As ``error``.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_BYTES), ""), start=1):
                if len(line) == MAX_BYTES:
                    raise error(f"{path}: line {number} has no end")
                yield number, line
    except SparsitySearchError:
        raise
    except (OSError, ValueError) as fault:
        raise _describe(path, fault, error) from fault


def read_json(path: Path, error: type[SparsitySearchError] = ConfigError) -> Any:
    """Return the JSON in a file.

    Args:
        path: The file.
        error: Raised if it is not JSON.

    Raises:
        ConfigError: The file cannot be read.
        SparsitySearchError: It is not UTF-8 or not JSON, as ``error``.
    """
    text = read_text(path)
    with told_of(f"{path} is corrupt", error):
        return parse_json(text)


def read_yaml(path: Path) -> Any:
    """Return the YAML in a file.

    Raises:
        ConfigError: The file cannot be read, or is not YAML as `parse_yaml` takes it.
    """
    return parse_yaml(read_text(path, MAX_YAML_BYTES))


def parse_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ConfigError: It is not JSON, a key stands twice in an object, or a value is not plain.
    """
    try:
        value = _JSON.decode(text)
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:
        raise _describe_syntax("JSON", error) from error
    check_plain(value)
    return value


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text: mappings, lists, texts, numbers, true, false and null.

    Dates are texts, and so are numbers in base 60 such as ``2:4``; ``1e-5`` is a number.

    Raises:
        ConfigError: It is not YAML, has an alias or a tag, a key stands twice in a mapping, or a
            value is not plain.
    """
    if len(text) > MAX_YAML_BYTES:
        raise ConfigError(f"not YAML: it is larger than {MAX_YAML_BYTES // 2**20} MiB")
    try:
        value = yaml.load(text, Loader=_YamlLoader)  # a SafeLoader
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _describe_syntax("YAML", error) from error
    check_plain(value)
    return value


def check_plain(value: Any) -> None:
    """Check that a value can be printed, stored and walked through.

    Raises:
        ConfigError: It is nested too deeply, a number is not finite or not of 64 bits, or a text
            is not Unicode.
    """
    rest = [(value, 0)]
    while rest:
        each, depth = rest.pop()
        if isinstance(each, str):
            if not each.isascii():
                _check_unicode(each)
        elif isinstance(each, int):
            if not -(2**63) <= each < 2**63:
                raise ConfigError(f"the number {show_value(each)} is too large")
        elif isinstance(each, float):
            if math.isnan(each):
                raise ConfigError("nan is not a number")
        elif isinstance(each, list | tuple | dict):
            if depth == MAX_DEPTH:
                raise ConfigError(_TOO_DEEP)
            rest += [(inner, depth + 1) for inner in each]
            if isinstance(each, dict):
                rest += [(inner, depth + 1) for inner in each.values()]


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{show_value(text)} has half a surrogate pair, which is no character"
        ) from error


def _describe(
    path: Path, fault: Exception, error: type[SparsitySearchError]
) -> SparsitySearchError:
    """Return the error for a file that cannot be opened or decoded."""
    if isinstance(fault, UnicodeDecodeError):
        return error(f"{path} is not UTF-8 text: convert it first")
    near = suggest_file(path) if isinstance(fault, FileNotFoundError) else ""
    return error(f"cannot read {path}: {getattr(fault, 'strerror', None) or fault}{near}")


def _describe_syntax(language: str, error: Exception) -> ConfigError:
    """Return the error for a text that cannot be parsed."""
    if isinstance(error, RecursionError):
        return ConfigError(_TOO_DEEP)
    if "digits" in str(error):  # Python's own limit for integers
        return ConfigError("a number has thousands of digits")
    return ConfigError(f"not {language}: {' '.join(str(error).split())}")


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _check_distinct((key for key, _ in pairs), "an object")
    return dict(pairs)


def _check_distinct(keys: Iterable[Hashable], where: str) -> None:
    seen = set()
    for key in keys:
        if key in seen:
            raise ConfigError(f"{show_value(key)} stands twice in {where}")
        seen.add(key)


def _refuse_constant(constant: str) -> None:
    raise ConfigError(f"{constant} is not a number")


def _parse_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ConfigError(f"{show_value(text)} is too large a number")
    return value


_JSON = json.JSONDecoder(
    object_pairs_hook=_build_object, parse_constant=_refuse_constant, parse_float=_parse_float
)


class _YamlLoader(yaml.SafeLoader):
    """Refuses what plain data does not need, and what YAML reads in surprising ways.

    A key that stands twice: YAML itself keeps the last one. An alias: with it, a small file is a
    large value, or one without end. A tag: it names a type.
    """

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise ConfigError("aliases (*name) are not read: write the value out")
        if getattr(self.peek_event(), "tag", None):  # type: ignore[no-untyped-call]
            raise ConfigError("tags (!name) are not read: leave them out")
        if self._depth > MAX_DEPTH:
            raise ConfigError(_TOO_DEEP)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key for key, _ in node.value]
        if not all(isinstance(key, yaml.ScalarNode) for key in keys):
            raise ConfigError("a key of a mapping is no plain value")
        _check_distinct(map(self.construct_object, keys), "a mapping")
        return super().construct_mapping(node, deep=deep)


def _construct_number(_: _YamlLoader, node: yaml.ScalarNode) -> int | float:
    text = node.value.replace("_", "").lower()
    if set(text) <= set("+-0123456789"):
        return int(text)
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


_YamlLoader.yaml_implicit_resolvers = {}  # its own, not those of its base class
_YamlLoader.add_constructor("tag:yaml.org,2002:int", _construct_number)
_YamlLoader.add_constructor("tag:yaml.org,2002:float", _construct_number)
for _kind, _pattern in {
    "null": "~|null|Null|NULL|",
    "bool": "true|True|TRUE|false|False|FALSE|yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF",
    "int": r"[-+]?[0-9][0-9_]*",
    "float": r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}.items():
    _YamlLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(f"({_pattern})$"), None
    )
