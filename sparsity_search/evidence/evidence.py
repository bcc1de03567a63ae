"""What is known of one unit when it is pruned."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sparsity_search.errors import ConfigError
from sparsity_search.evidence.statistics import InputStatistics
from sparsity_search.evidence.structures import Structures


@dataclass(frozen=True, eq=False, kw_only=True)
class WeightGradient:
    """Gradients of the dense model's loss on the calibration text, one a sequence.

    The loss is the mean over a sequence's tokens, in nats. Both are float32, of the weight's
    shape.

    Attributes:
        mean: Mean over sequences.
        rms: Root mean square over sequences.
    """

    mean: Tensor
    rms: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Routing:
    """What the router of a mixture of experts did with the calibration text.

    Attributes:
        tokens: How many tokens were routed to each expert, ``(experts,)`` int64.
        saliency: Mean over these of gate weight times Euclidean norm of the expert's output,
            ``(experts,)`` float32; 0 for an expert without tokens. REAP, arXiv 2510.13999.
        coactivation: How many tokens were routed to both of two experts, ``(experts, experts)``
            int64, symmetric; the diagonal is 0.
    """

    tokens: Tensor
    saliency: Tensor
    coactivation: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Evidence:
    """What a pruner may use besides the weight itself.

    Attributes:
        inputs: Statistics of the tensor that the weight multiplies.
        following: Statistics of the inputs of the linear that reads this one's outputs, in a
            gated feed-forward (``gate`` and ``up`` are followed by ``down``); else None.
        gradient: Of the weight, for pruners that ask for it; else None.
        structures: How the weight is made of structures, where these are removed; else None.
        routing: Where the structures are the experts of a mixture; else None.
    """

    inputs: InputStatistics
    following: InputStatistics | None = None
    gradient: WeightGradient | None = None
    structures: Structures | None = None
    routing: Routing | None = None


def routing_of(evidence: Evidence) -> Routing:
    """Return the routing of a mixture of experts.

    Raises:
        ConfigError: The unit is none.
    """
    if evidence.routing is None:
        raise ConfigError("this pruner removes structures: choose --units experts")
    return evidence.routing
