"""Second moments of a layer's inputs, on which local pruners base their choice.

One `InputStatistics` belongs to one input *tensor*, not to one linear layer: query, key and value
projections share one object, and with it the expensive factorisation.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from sparsity_search.errors import ConfigError, DataError, NumericalError

T = TypeVar("T")

#: Tokens summed in float32 before a sum enters float64, which is slow.
_SUMMED = 128
#: A Hessian of at least `_MANY` inputs is summed in `_PARTS` row blocks, each only up to the
#: diagonal; the rest follows by symmetry.
_PARTS, _MANY = 4, 256
_LARGEST_DAMPING = 1.0
_SMALLEST_RAISE = 1e-4  # the first damping after zero


class Statistic(enum.IntEnum):
    """Kind of input statistics that a pruner needs; each kind includes the lower ones.

    ``NORM`` is the mean and mean square of each input, ``HESSIAN`` the mean of all products.
    """

    NONE = 0
    NORM = 1
    HESSIAN = 2


@dataclass(frozen=True, eq=False)
class InverseFactor:
    """Upper Cholesky factor ``U`` of the inverse damped Hessian, ``H⁻¹ = Uᵀ U``.

    Attributes:
        upper: ``(n_inputs, n_inputs)`` float32, upper triangular, positive diagonal.
        damping: The damping used, as a fraction of the mean live diagonal entry. It is larger than
            requested if the matrix could not be factorised otherwise.
        dead: ``(n_inputs,)`` bool, True for inputs that were zero for every token.
        fallback: True if no damping helped and ``H`` was replaced by its diagonal.
    """

    upper: Tensor
    damping: float
    dead: Tensor
    fallback: bool


class InputStatistics:
    """Streaming second moments of one input tensor, independent of how it is cut into chunks.

    Products are taken in float32 or better and summed in float64 (float32 on devices without it).

    Args:
        n_inputs: Width of the input tensor.
        statistic: Kind to gather; `Statistic.NONE` only counts tokens.
        device: Device of the sums; inputs are moved to it.
    """

    def __init__(
        self, n_inputs: int, statistic: Statistic, device: torch.device | str | None = None
    ) -> None:
        self.n_inputs = n_inputs
        self.statistic = statistic
        self.n_tokens = 0
        shape = {Statistic.NONE: (), Statistic.NORM: (n_inputs,)}.get(statistic, (n_inputs,) * 2)
        device = torch.device(device or "cpu")
        wide = torch.float32 if device.type == "mps" else torch.float64
        self._sum = torch.zeros(shape, dtype=wide, device=device)
        self._total = torch.zeros(n_inputs, dtype=wide, device=device)
        self._cross: Tensor | None = None
        self._derived: dict[Hashable, Any] = {}

    @property
    def device(self) -> torch.device:
        """Device of the sums."""
        return self._sum.device

    @property
    def n_bytes(self) -> int:
        """Memory of the sums, in bytes."""
        cross = 0 if self._cross is None else self._cross.nbytes
        return self._sum.nbytes + self._total.nbytes + cross

    def tensors(self) -> dict[str, Tensor]:
        """Return the sums for storage; of a Hessian, the entries on and below the diagonal."""
        products = self._sum
        if self.statistic is Statistic.HESSIAN:
            products = torch.cat([row[: i + 1] for i, row in enumerate(self._sum)])
        return {"products": products, "sum": self._total}

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        statistic: Statistic,
        n_tokens: int,
        device: str | torch.device,
    ) -> InputStatistics:
        """Return the statistics whose `tensors` these are, equal to the bit.

        Args:
            tensors: Result of the method `tensors`.
            statistic: Kind that was gathered.
            n_tokens: Number of tokens that were added.
            device: Device of the sums.
        """
        result = cls(len(tensors["sum"]), statistic, device)
        result.n_tokens = n_tokens
        result._total.copy_(tensors["sum"])
        products = tensors["products"].to(result._sum.device)
        if statistic is Statistic.HESSIAN:
            rows = torch.split(products, [i + 1 for i in range(result.n_inputs)])
            for i, row in enumerate(rows):
                result._sum[i, : i + 1] = row
        else:
            result._sum.copy_(products)
        return result

    @torch.no_grad()
    def add(self, inputs: Tensor, dense: Tensor | None = None) -> None:
        """Add tokens.

        Args:
            inputs: ``(..., n_inputs)``, of any float dtype.
            dense: What the dense model has in their place, for `cross`; for all tokens or none.
        """
        if inputs.shape[-1] != self.n_inputs:
            raise DataError(f"inputs have width {inputs.shape[-1]}, not {self.n_inputs}")
        tokens = inputs.reshape(-1, self.n_inputs)
        self.n_tokens += len(tokens)
        self._derived.clear()
        if self.statistic is Statistic.NONE:
            return
        dtype = torch.promote_types(tokens.dtype, torch.float32)
        tokens = tokens.to(device=self._sum.device, dtype=dtype)
        self._total += _sum_tokens(tokens).to(self._total)
        if self.statistic is Statistic.NORM:
            self._sum += _sum_tokens(tokens.square()).to(self._sum)
        else:
            self._add_products(tokens)
        if dense is not None:
            product = dense.reshape(-1, self.n_inputs).to(tokens).T @ tokens
            self._cross = product.to(self._sum) + (0 if self._cross is None else self._cross)

    def _add_products(self, tokens: Tensor) -> None:
        """Add ``x xᵀ`` of all tokens, on and below the diagonal."""
        n_parts = _PARTS if self.n_inputs >= _MANY else 1
        ends = [part * self.n_inputs // n_parts for part in range(n_parts + 1)]
        for start, stop in pairwise(ends):
            self._sum[start:stop, :stop] += tokens[:, start:stop].T @ tokens[:, :stop]

    def cross(self) -> Tensor | None:
        """Return the mean of ``x̃ xᵀ`` over tokens, with ``x̃`` the dense model's inputs.

        It is ``(n_inputs, n_inputs)`` float32, and None if these are not known.
        """
        products = self._cross
        if products is None:
            return None
        return self.derived("cross", lambda: (products / self.n_tokens).float())

    def norms(self) -> Tensor:
        """Return each input's root mean square over tokens, ``(n_inputs,)`` float32."""
        mean = self._mean(Statistic.NORM)
        if self.statistic is Statistic.HESSIAN:
            mean = mean.diagonal()
        return mean.sqrt().float()

    def mean(self) -> Tensor:
        """Return each input's mean over tokens, ``(n_inputs,)`` float32."""
        self._mean(Statistic.NORM)
        return (self._total / self.n_tokens).float()

    def variance(self) -> Tensor:
        """Return each input's variance over tokens, ``(n_inputs,)`` float32, not negative."""
        square = self._mean(Statistic.NORM)
        if self.statistic is Statistic.HESSIAN:
            square = square.diagonal()
        return (square - (self._total / self.n_tokens).square()).clamp_min(0).float()

    def hessian(self) -> Tensor:
        """Return the mean of ``x xᵀ`` over tokens, ``(n_inputs, n_inputs)`` float32, symmetric."""
        return self._symmetric().float()

    def inverse_factor(self, damping: float) -> InverseFactor:
        """Return the factor of ``(H + λ I)⁻¹`` with ``λ = damping · mean(diag H)``.

        It is computed once for each damping. Dead inputs get ``H_jj = 1`` and are left out of the
        mean. If the matrix cannot be factorised, the damping is raised tenfold, up to 1; if that
        does not help either, the matrix is replaced by its diagonal.

        Raises:
            NumericalError: No tokens were added, or the sums are not finite.
        """
        return self.derived(
            ("inverse factor", damping), lambda: _factorise(self._symmetric(), damping)
        )

    def damped_hessian(self, damping: float) -> Tensor:
        """Return ``H + λ I`` as in `inverse_factor`, in float64 where the device supports it.

        The damping may be larger than requested, and the matrix is diagonal if the factor is a
        fallback.
        """
        factor, hessian = self.inverse_factor(damping), self._symmetric()
        scale = _revive_dead_inputs(hessian)[1]
        hessian.diagonal().add_(factor.damping * scale)
        return hessian.diagonal().diag() if factor.fallback else hessian

    def derived(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return ``make()``, called once for each key until tokens are added.

        Units that read the same tensor share its statistics and all values derived from them.
        """
        if key not in self._derived:
            self._derived[key] = make()
        value: T = self._derived[key]
        return value

    def _symmetric(self) -> Tensor:
        lower = self._mean(Statistic.HESSIAN).tril()
        return lower + lower.tril(-1).T

    def _mean(self, needed: Statistic) -> Tensor:
        if self.statistic < needed:
            raise ConfigError(
                f"{needed.name} was asked of statistics gathered with {self.statistic.name}"
            )
        if self.n_tokens == 0:
            raise NumericalError("no tokens were added to the input statistics")
        mean = self._sum / self.n_tokens
        if not mean.isfinite().all():
            raise NumericalError("input statistics are not finite: an activation was NaN or Inf")
        return mean


def _sum_tokens(tokens: Tensor) -> Tensor:
    """Return the sum over tokens, ``(n_inputs,)`` float64, from partial sums in float32."""
    whole = len(tokens) - len(tokens) % _SUMMED
    parts = tokens[:whole].view(-1, _SUMMED, tokens.shape[1]).sum(dim=1)
    wide = torch.float32 if tokens.device.type == "mps" else torch.float64
    return torch.cat([parts, tokens[whole:]]).to(wide).sum(dim=0)


def _revive_dead_inputs(hessian: Tensor) -> tuple[Tensor, float]:
    """Set the diagonal of dead inputs to 1 in place; return their mask and the others' mean."""
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    scale = float(diagonal[~dead].mean()) if not dead.all() else 1.0
    diagonal[dead] = 1.0
    return dead, scale


def _factorise(hessian: Tensor, damping: float) -> InverseFactor:
    dead, scale = _revive_dead_inputs(hessian)
    tried = damping
    while True:
        upper = _inverse_cholesky(hessian, tried * scale)
        if upper is not None:
            return InverseFactor(upper, tried, dead, fallback=False)
        if tried >= _LARGEST_DAMPING:
            break
        tried = min(max(10 * tried, _SMALLEST_RAISE), _LARGEST_DAMPING)
    upper = (hessian.diagonal() + tried * scale).rsqrt().diag().float()
    return InverseFactor(upper, tried, dead, fallback=True)


def _inverse_cholesky(hessian: Tensor, ridge: float) -> Tensor | None:
    """Return float32 ``U`` with ``(hessian + ridge I)⁻¹ = Uᵀ U``, or None if it has no factor."""
    damped = hessian.clone()
    damped.diagonal().add_(ridge)
    lower, info = torch.linalg.cholesky_ex(damped)
    if info != 0:
        return None
    upper, info = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    upper = upper.float()
    return upper if info == 0 and bool(upper.isfinite().all()) else None
