"""The calibration data that a pruner receives with a unit."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sparsity_search.errors import ConfigError
from sparsity_search.evidence.statistics import InputStatistics
from sparsity_search.evidence.structures import StructureLayout


@dataclass(frozen=True, eq=False, kw_only=True)
class WeightGradient:
    """Gradients of the dense model's loss on the calibration text, one per sequence.

    The loss is the mean over a sequence's tokens, in nats. Both tensors are float32 and have the
    weight's shape.

    Attributes:
        mean: Mean over sequences.
        rms: Root mean square over sequences.
    """

    mean: Tensor
    rms: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Routing:
    """Routing of the calibration text in a mixture of experts.

    Attributes:
        tokens: Number of tokens routed to each expert, ``(experts,)`` int64.
        saliency: Mean over these tokens of gate weight times Euclidean norm of the expert's
            output, ``(experts,)`` float32; 0 for an expert without tokens. REAP, arXiv 2510.13999.
        coactivation: Number of tokens routed to both experts of a pair, ``(experts, experts)``
            int64, symmetric; the diagonal is 0.
    """

    tokens: Tensor
    saliency: Tensor
    coactivation: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Evidence:
    """Calibration data of a unit, which a pruner may use besides the weight.

    Attributes:
        inputs: Statistics of the tensor that the weight multiplies.
        following: Statistics of the inputs of the linear that reads this one's outputs, in a
            gated feed-forward (``gate`` and ``up`` are followed by ``down``); else None.
        gradient: Gradient of the weight, for pruners that ask for it; else None.
        structures: Layout of the weight's structures; None where single weights are removed.
        routing: Routing of the mixture, where the structures are experts; else None.
    """

    inputs: InputStatistics
    following: InputStatistics | None = None
    gradient: WeightGradient | None = None
    structures: StructureLayout | None = None
    routing: Routing | None = None


def get_routing(evidence: Evidence) -> Routing:
    """Return the routing of a mixture of experts.

    Raises:
        ConfigError: The unit is not a mixture.
    """
    if evidence.routing is None:
        raise ConfigError("this pruner removes structures: choose --units experts")
    return evidence.routing
