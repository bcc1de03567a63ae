"""FLAP's metrics of how much a linear layer's output fluctuates with each input.

An input that hardly varies can be replaced by its mean, which is a bias. The metrics are those of
FLAP (An et al., AAAI 2024, arXiv 2312.11983, section 3.2 and table of metrics).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.evidence.statistics import InputStatistics


def _wifv(weight: Tensor, inputs: InputStatistics) -> Tensor:
    return weight.square().sum(dim=0) * inputs.variance().to(weight.device)


def _ifv(weight: Tensor, inputs: InputStatistics) -> Tensor:
    return inputs.variance().to(weight.device)


def _wifn(weight: Tensor, inputs: InputStatistics) -> Tensor:
    return weight.abs().mean(dim=0) * inputs.norms().to(weight.device)


_METRICS: dict[str, Callable[[Tensor, InputStatistics], Tensor]] = {
    "WIFV": _wifv,
    "IFV": _ifv,
    "WIFN": _wifn,
}


def check_metric(metric: str) -> None:
    """Check the name of a metric.

    Raises:
        ConfigError: There is no such metric.
    """
    if metric not in _METRICS:
        raise ConfigError(f"metric must be one of {', '.join(_METRICS)}, not {metric!r}")


def compute_input_scores(weight: Tensor, inputs: InputStatistics, metric: str) -> Tensor:
    """Return the importance of each input of a linear layer, ``(n_inputs,)`` float32.

    ``WIFV`` is ``Var(x_j) · Σ_i W_ij²``: exactly the mean squared error that remains when the
    input is removed and its mean becomes a bias. ``IFV`` is ``Var(x_j)``, ``WIFN`` is
    ``mean_i |W_ij| · rms(x_j)``. The variance is over all tokens, divided by their number.

    Args:
        weight: ``(outputs, n_inputs)`` float32.
        inputs: Statistics of the layer's inputs, at least `Statistic.NORM`.
        metric: ``"WIFV"``, ``"IFV"`` or ``"WIFN"``.

    Raises:
        ConfigError: There is no such metric.
        NumericalError: A score is not finite.
    """
    check_metric(metric)
    scores = _METRICS[metric](weight, inputs)
    if not scores.isfinite().all():
        raise NumericalError("scores are not finite: weights or statistics have huge entries")
    return scores
