"""Finding the decoder blocks of a model, and running them in another way."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from sparsity_search.errors import ConfigError, ModelError

#: Attribute of a model: the module list that was chosen by name. No checkpoint holds it.
_CHOSEN = "_sparsity_search_blocks"
#: Names that an error lists, at most.
_LISTED = 8


def find_blocks(model: nn.Module, pattern: str | None = None) -> tuple[str, nn.ModuleList]:
    """Return the decoder blocks and the name of their module list.

    Args:
        model: A decoder model of transformers.
        pattern: A regular expression that matches the name of one module list, for this call and
            all later ones on the model; lists inside one that matches do not count. By default
            the first list as long as the configuration says there are layers.

    Raises:
        ModelError: There is no such list, or more than one.
        ConfigError: ``pattern`` is no regular expression.
    """
    lists = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    if pattern is not None:
        name = _named(lists, pattern, type(model).__name__)
        setattr(model, _CHOSEN, name)
        return name, lists[name]
    if (chosen := getattr(model, _CHOSEN, None)) is not None:
        return chosen, lists[chosen]
    config = getattr(model, "config", None)
    n_layers = getattr(config and config.get_text_config(), "num_hidden_layers", None)
    for name, found in lists.items():
        if len(found) == n_layers:
            return name, found
    raise ModelError(
        f"no decoder blocks found in {type(model).__name__}: no module list of {n_layers} "
        f"layers, as its config says; name one with --blocks REGEX: {_listed(lists)}"
    )


@contextmanager
def replaced(
    blocks: Iterable[nn.Module], forwards: Iterable[Callable[..., Any]]
) -> Iterator[None]:
    """Run blocks by other functions inside; their hooks stay."""
    blocks = list(blocks)
    own = [block.__dict__.get("forward") for block in blocks]
    for block, forward in zip(blocks, forwards, strict=False):
        block.forward = forward
    try:
        yield
    finally:
        for block, was in zip(blocks, own, strict=True):
            block.__dict__.pop("forward", None)
            if was is not None:
                block.forward = was


def _named(lists: dict[str, nn.ModuleList], pattern: str, model: str) -> str:
    try:
        matching = [name for name in lists if re.search(pattern, name)]
    except re.error as error:
        raise ConfigError(f"--blocks {pattern!r} is no regular expression: {error}") from error
    outer = [n for n in matching if not any(n.startswith(f"{other}.") for other in matching)]
    if len(outer) == 1:
        return outer[0]
    if not outer:
        raise ModelError(f"--blocks {pattern!r} is no module list of {model}: {_listed(lists)}")
    raise ModelError(f"--blocks {pattern!r} matches {_listed(outer)}: name one")


def _listed(lists: dict[str, nn.ModuleList] | list[str]) -> str:
    names = list(lists)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more if names else "it has none"
