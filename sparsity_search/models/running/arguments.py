"""Arguments and outputs of decoder blocks, of any form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor

#: An argument: its position, or its name.
Key = int | str
#: All arguments of one call, positional ones first.
Arguments = Mapping[Key, Any]


def name_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[Key, Any]:
    """Return positional arguments by position, and the others by name."""
    found: dict[Key, Any] = dict(enumerate(args))
    found.update(kwargs)
    return found


def split_arguments(arguments: Arguments) -> tuple[list[Any], dict[str, Any]]:
    """Return the positional arguments, and the others by name."""
    args = [value for key, value in arguments.items() if isinstance(key, int)]
    return args, {key: value for key, value in arguments.items() if isinstance(key, str)}


def find_hidden(arguments: Arguments) -> Key:
    """Return the argument with the hidden states: the first one, or ``hidden_states``."""
    return 0 if 0 in arguments else "hidden_states"


def list_parts(output: Any) -> list[Any]:
    """Return the parts of a block's output; the first one is the hidden states."""
    return [output] if isinstance(output, Tensor) else list(output)


def list_mappings(values: Iterable[Any]) -> list[MutableMapping[Any, Any]]:
    """Return the arguments into which a block can write for later ones, in order."""
    return [value for value in values if isinstance(value, MutableMapping)]


def find_written(before: Mapping[Any, Any], after: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return the entries of a mapping that are new or replaced."""
    return {key: value for key, value in after.items() if before.get(key) is not value}


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return a value with its tensors replaced, also in lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        return function(value)
    if type(value) is dict:
        return {key: map_tensors(part, function) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map_tensors(part, function) for part in value)
    return value
