"""Taylor importance of whole structures, from the gradient of the model's loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.evidence.evidence import Evidence, WeightGradient
from sparsity_search.pruners.bases.structured import (
    StructuredPruner,
    get_structure_layout,
    sort_by_score,
)


def _first(weight: Tensor, gradient: WeightGradient) -> Tensor:
    return (weight * gradient.mean).abs().sum(dim=0)


def _vector(weight: Tensor, gradient: WeightGradient) -> Tensor:
    return (weight * gradient.mean).sum(dim=0).abs()


def _second(weight: Tensor, gradient: WeightGradient) -> Tensor:
    return (weight * gradient.rms).square().sum(dim=0)


def _mixed(weight: Tensor, gradient: WeightGradient) -> Tensor:
    change = weight * gradient.mean - (weight * gradient.rms).square() / 2
    return change.abs().sum(dim=0)


_FORMS: dict[str, Callable[[Tensor, WeightGradient], Tensor]] = {
    "first": _first,
    "vector": _vector,
    "second": _second,
    "mixed": _mixed,
}


@dataclass(frozen=True, kw_only=True)
class TaylorPruner(StructuredPruner):
    """Score ``Σ |w · ∂L/∂w|`` over all weights of a structure, makers and consumer.

    LLM-Pruner (Ma et al., NeurIPS 2023, arXiv 2305.11627, section 3.2), its element-wise first
    order, summed over the coupled weights. With ``g`` the mean gradient over sequences and ``f``
    its mean square, which stands for the diagonal of the Hessian (empirical Fisher), a structure
    has the sum over its weights ``w``, or over its vectors ``v`` (rows of the makers, columns of
    the consumer):

    * ``first``: ``Σ_w |w g|``, the default of the released code.
    * ``vector``: ``Σ_v |Σ_{w in v} w g|``; within a vector signs may cancel.
    * ``second``: ``Σ_w w² f``; no factor ½, which would change no order.
    * ``mixed``: ``Σ_w |w g − ½ w² f|``, the loss's change to second order.

    Published are a ratio for each block and gradients of a few short sequences; both are the
    caller's matter here.

    Attributes:
        form: ``first``, ``vector``, ``second`` or ``mixed``.
    """

    form: str = "first"

    def __post_init__(self) -> None:
        if self.form not in _FORMS:
            raise ConfigError(f"form must be one of {', '.join(_FORMS)}, not {self.form!r}")

    @property
    def needs_gradient(self) -> bool:
        """The weights' gradient."""
        return True

    def order(self, weight: Tensor, evidence: Evidence, seed: int) -> Tensor:
        """Return structures by rising score.

        Raises:
            ConfigError: The evidence has no gradient.
            NumericalError: The gradient is not finite.
        """
        if evidence.gradient is None:
            raise ConfigError("taylor needs the weights' gradient, and the evidence has none")
        shape, gradient = get_structure_layout(evidence), _move_gradient(evidence.gradient, weight)
        columns = _FORMS[self.form](weight, gradient)[: shape.count * shape.width]
        return sort_by_score(columns.view(shape.count, shape.width).sum(dim=1), seed)


def _move_gradient(gradient: WeightGradient, weight: Tensor) -> WeightGradient:
    """Return the gradient on the weight's device, if it is finite."""
    mean, rms = gradient.mean.to(weight.device), gradient.rms.to(weight.device)
    if not (mean.isfinite().all() and rms.isfinite().all()):
        raise NumericalError("the weights' gradient has NaN or Inf entries")
    return WeightGradient(mean=mean, rms=rms)
