"""GBLM-Pruner: Wanda's score with the loss's gradient added to the inputs' norms."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.evidence.evidence import Evidence
from sparsity_search.evidence.statistics import Statistic
from sparsity_search.pruners.bases.score import ScorePruner

#: Sequences and tokens of each in the published calibration text.
_SEQUENCES, _LENGTH = 128, 2048


@dataclass(frozen=True, kw_only=True)
class GBLMPruner(ScorePruner):
    """Score ``|W_ij| · (‖X_j‖₂ + scale · ‖G_ij‖₂)`` within rows (Das et al., arXiv 2311.04902).

    Published, for ``N`` sequences of ``L`` tokens: ``‖X_j‖₂`` is the root of the mean over
    sequences of the squared column norm, ``√L · rms(x_j)``; ``‖G_ij‖₂`` (the ℓ2 kind of the two)
    is the root of the sum over sequences of the squared gradient, ``√N · rms(g_ij)``. The second
    term so weighs more if there is more text. Here both are divided by ``√L``, which changes no
    order, and the ``√(N/L)`` that is left is that of the published text, 128 sequences of 2048
    tokens: ``|W_ij| · (rms(x_j) + scale · rms(g_ij) / 4)``. That is the published score on such
    text, and has no number or length of sequences in it on other text.

    Attributes:
        scale: Factor of the gradient; 0 is Wanda.
    """

    pattern: str = "row"
    scale: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.scale < math.inf:
            raise ConfigError(f"scale must be at least 0, not {self.scale}")

    @property
    def requires(self) -> Statistic:
        """The inputs' norms."""
        return Statistic.NORM

    @property
    def needs_gradient(self) -> bool:
        """The weight's gradient."""
        return True

    def score(self, weight: Tensor, evidence: Evidence) -> Tensor:
        """Return ``|W|`` times the sum of the inputs' norms and the scaled gradients.

        Raises:
            ConfigError: The evidence has no gradient.
            NumericalError: The gradient is not finite.
        """
        if evidence.gradient is None:
            raise ConfigError("gblm needs the weight's gradient, and the evidence has none")
        gradient = evidence.gradient.rms.to(weight.device)
        if not gradient.isfinite().all():
            raise NumericalError("the weight's gradient has NaN or Inf entries")
        factor = self.scale * math.sqrt(_SEQUENCES / _LENGTH)
        return weight.abs() * (evidence.inputs.norms().to(weight.device) + factor * gradient)
