"""Shapes of values from files and settings: what pydantic checks, with its faults as one line."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from sparsity_search.errors import ConfigError, SparsitySearchError, show_value

#: A number of items, and the size of something that is there.
Count = Annotated[int, Field(ge=0, lt=10**15)]
Size = Annotated[int, Field(ge=1, lt=10**15)]

_STRICT = ConfigDict(strict=True, allow_inf_nan=False)
#: Words for what pydantic's messages say.
_WORDS = {
    "Input should be": "must be",
    r"(valid )?dictionary( or (an )?instance of \w+)?": "mapping",
    r"\btuple\b": "list",
    ", unable to parse string as an? \\w+": "",
}
#: Most faults that a message lists.
_LISTED = 4


class Shape(BaseModel):
    """A mapping in a JSON file: its keys with their types; other keys may stand beside them.

    Nothing is converted: ``true`` is no number, and ``1.7`` no count.
    """

    model_config = ConfigDict(**_STRICT, frozen=True)


S = TypeVar("S", bound=Shape)


def parse_shape(shape: type[S], value: Any, subject: str, error: type[SparsitySearchError]) -> S:
    """Return a value as a shape.

    Args:
        shape: The shape.
        value: Any JSON value.
        subject: Start of the message: ``"not a sparsity profile"``.
        error: Raised if it is not.

    Raises:
        SparsitySearchError: The value has another shape, as ``error``.
    """
    try:
        return shape.model_validate(value)
    except ValidationError as fault:
        raise error(f"{subject}: {describe_faults(fault)}") from fault


def describe_fault(fault: Any) -> str:
    """Return one fault that pydantic found: where, what is needed, and what was given."""
    place = ".".join(map(str, fault["loc"]))
    if fault["type"] == "missing":
        return f"no {place!r} in it"
    if fault["type"] == "value_error":  # of a class of the project, which says it all
        needed = str(fault["ctx"]["error"])
    else:
        needed = f"{_in_plain_words(fault['msg'])}, not {show_value(fault['input'])}"
    return f"{place}: {needed}" if place else needed


def _in_plain_words(message: str) -> str:
    """Return a message of pydantic without the names of Python's types."""
    for pattern, words in _WORDS.items():
        message = re.sub(pattern, words, message)
    return message


def describe_faults(
    error: ValidationError, name: str = "", describe: Callable[[Any], str] = describe_fault
) -> str:
    """Return the faults that pydantic found, the first ones if they are many.

    Args:
        error: The error of pydantic.
        name: Name of the value that it is about, if it has one.
        describe: Function from one of its faults to words.
    """
    faults = error.errors()
    places: tuple[str, ...] = (name,) if name else ()
    shown = [describe({**fault, "loc": (*places, *fault["loc"])}) for fault in faults[:_LISTED]]
    more = [f"and {len(faults) - _LISTED} more"] if len(faults) > _LISTED else []
    return "; ".join([*shown, *more])


def check_settings(owner: type, settings: Mapping[str, Any]) -> None:
    """Check that settings have the types of the fields of a class; nothing is converted.

    Raises:
        ConfigError: One has another type.
    """
    adapters = _build_adapters(owner)
    for name, value in settings.items():
        if name in adapters:
            try:
                adapters[name].validate_python(value)
            except ValidationError as error:
                raise ConfigError(describe_faults(error, name)) from error


@cache
def _build_adapters(owner: type) -> dict[str, TypeAdapter[Any]]:
    """Return what checks each field of a class; none for types that only a type checker knows."""
    try:
        hints = get_type_hints(owner, include_extras=True)
    except NameError:
        return {}
    found = {}
    for name, hint in hints.items():
        try:
            found[name] = TypeAdapter(hint, config=_STRICT)
        except PydanticUserError:  # a class of its own
            continue
    return found
