"""Expressions over a block's scores: nested functions by name; nothing is evaluated as code."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsity_search.errors import ConfigError, suggest_name

Operation = Callable[[Tensor], Tensor]


def _log(x: Tensor) -> Tensor:
    return x.masked_fill(x <= 0, 1).log()


def _abslog(x: Tensor) -> Tensor:
    return x.masked_fill(x == 0, 1).abs_().log_()


def _standardise(x: Tensor) -> Tensor:
    deviation = x.std()
    return (x - x.mean()) / deviation if deviation > 0 else torch.zeros_like(x)


def _minmax(x: Tensor) -> Tensor:
    low, high = x.aminmax()
    return (x - low) / (high - low) if high > low else torch.zeros_like(x)


def _geometric_mean(x: Tensor) -> Tensor:
    return x.log().mean().exp()  # the product itself would underflow


def _entropy(x: Tensor) -> Tensor:
    legal = x[x >= 0]
    entropy: Tensor = torch.special.entr(legal / legal.sum()).sum()
    return entropy


#: Of all scores; they do not modify them.
SCORES: dict[str, Operation] = {
    "identity": lambda x: x,
    "abs": torch.abs,
    "log": _log,
    "abslog": _abslog,
    "square": torch.square,
    "exp": torch.exp,
    "standardise": _standardise,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "minmax": _minmax,
}
#: From all scores to one value.
REDUCTIONS: dict[str, Operation] = {
    "mean": torch.mean,
    "var": torch.var,
    "std": torch.std,
    "l1": lambda x: x.abs().mean(),
    "frobenius": lambda x: x.square().sum().sqrt(),  # its sum is the more accurate one
    "geometric_mean": _geometric_mean,
    "entropy": _entropy,
}
#: Of the value.
VALUES: dict[str, Operation] = {
    "identity": lambda x: x,
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": torch.tan,
    "asin": torch.asin,
    "acos": torch.acos,
    "atan": torch.atan,
    "exp": torch.exp,
    "log": torch.log,
    "abs": torch.abs,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": torch.nn.functional.softplus,
}


@dataclass(frozen=True)
class Expression:
    """A function of a block's scores.

    Attributes:
        scores: Names in `SCORES`, in the order in which they are applied.
        reduction: A name in `REDUCTIONS`.
        values: Names in `VALUES`, in the order in which they are applied.
    """

    scores: tuple[str, ...]
    reduction: str
    values: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Expression:
        """Return the expression that functions of ``x``, one inside another, describe.

        Raises:
            ConfigError: It is written otherwise, names an operation that does not exist or does
                not fit its place, or has not exactly one reduction.

        >>> Expression.parse("asin(atan(var(abslog(x))))")
        Expression(scores=('abslog',), reduction='var', values=('atan', 'asin'))
        """
        *outer, inner = (part.strip() for part in text.split("("))
        if "".join(inner.split()) != "x" + ")" * len(outer):
            raise ConfigError(f"an expression looks like atan(var(abslog(x))), not {text!r}")
        names = outer[::-1]
        for name in names:
            if name not in (known := {**SCORES, **REDUCTIONS, **VALUES}):
                raise ConfigError(
                    f"{text!r}: unknown operation {name!r}: {suggest_name(name, known)}"
                )
        found = [i for i, name in enumerate(names) if name in REDUCTIONS]
        if len(found) != 1:
            raise ConfigError(f"{text!r}: exactly one has to be of {', '.join(REDUCTIONS)}")
        scores, reduction, values = names[: found[0]], names[found[0]], names[found[0] + 1 :]
        _check_place(scores, SCORES, f"inside {reduction}")
        _check_place(values, VALUES, f"around {reduction}")
        return cls(tuple(scores), reduction, tuple(values))

    def __call__(self, scores: Tensor) -> float:
        """Return its value for ``scores``, flat in float32, which are not modified.

        The value is computed in float64. As in DSA's released code, an undefined value (NaN)
        counts as 0, an infinite one as -1.
        """
        for name in self.scores:
            scores = SCORES[name](scores)
        value = REDUCTIONS[self.reduction](scores).double()
        for name in self.values:
            value = VALUES[name](value)
        found = float(value)
        return found if math.isfinite(found) else 0.0 if math.isnan(found) else -1.0


def _check_place(names: Sequence[str], known: dict[str, Operation], place: str) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"{name} cannot stand {place}: {suggest_name(name, known)}")
