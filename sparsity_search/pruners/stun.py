"""STUN: experts that are used alike become one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparsity_search.errors import ConfigError, NumericalError
from sparsity_search.evidence.evidence import Evidence, get_routing
from sparsity_search.evidence.structures import StructureLayout
from sparsity_search.evidence.variants import StoredVariants
from sparsity_search.interfaces.pruner import Pruner, check_table
from sparsity_search.pruners.bases.order import draw_tie_breaks
from sparsity_search.pruners.bases.structured import get_structure_layout

#: Experts by number, in clusters.
_Clusters = list[list[int]]


@dataclass(frozen=True, kw_only=True)
class STUNPruner(Pruner):
    """Clusters experts that are chosen together or have like router rows; one of each stays.

    The first stage of STUN (Lee et al., arXiv 2409.06211), which asks the router alone; its
    second stage is any pruner of single weights on the model that is left. The distance of two
    experts is ``−c_ij / mean(c) + mix_weight · ‖r_i − r_j‖₂``, with ``c`` the number of tokens
    that are routed to both, and ``r`` the rows of the router. Clusters grow by complete linkage:
    always those two are joined whose farthest members are closest.

    A cluster becomes its expert that is closest to the mean of the cluster's weights, with that
    expert's router row. Where only a few clusters are left, they become the means themselves,
    router rows included. An average that is all zeros (experts that cancel) is not used.

    Where the router's experts stand in groups, each group has clusters of its own, equally many.

    The published code joins the closest single experts whose clusters stay below a threshold,
    which it bisects for a total over all blocks; it has its weight on the first term, and takes
    the mean of ``c`` over the diagonal too. Here a block's count says how many clusters are left,
    each count being a cut of one and the same clustering.

    Attributes:
        coactivation: Whether the first term of the distance is used.
        mix_weight: Of the second term, not negative.
        merge_max_clusters: With at most this many clusters left, experts are averaged.
    """

    units: ClassVar[tuple[str, ...]] = ("experts",)
    coactivation: bool = True
    mix_weight: float = 1.0
    merge_max_clusters: int = 2

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mix_weight) and self.mix_weight >= 0):
            raise ConfigError(f"mix_weight must be a number from 0, not {self.mix_weight}")
        if self.mix_weight == 0 and not self.coactivation:
            raise ConfigError("mix_weight must not be 0 without coactivation: nothing is compared")
        if self.merge_max_clusters < 0:
            raise ConfigError(
                f"merge_max_clusters must not be negative, not {self.merge_max_clusters}"
            )

    @torch.no_grad()
    def prune(
        self, weight: Tensor, evidence: Evidence, counts: Sequence[int], *, seed: int
    ) -> StoredVariants:
        """Return whole matrices, see `Pruner.prune`.

        Raises:
            ConfigError: The unit is no mixture of experts, too.
        """
        shape = get_structure_layout(evidence)
        table = check_table(counts, shape.items)
        if not weight.isfinite().all():
            raise NumericalError("the weight has NaN or Inf entries")
        live = ~shape.empty(weight).cpu()
        groups = shape.by_group(torch.arange(shape.count))
        found = [self._cuts(weight, evidence, group[live[group]], seed) for group in groups]
        variants = []
        for count in table:
            left = shape.items - count
            clusters = [own for cuts in found for own in cuts[max(len(cuts) - 1 - left, 0)]]
            variants.append(self._reduced(weight, shape, clusters))
        return StoredVariants.of(variants, table)

    def _cuts(
        self, weight: Tensor, evidence: Evidence, live: Tensor, seed: int
    ) -> list[_Clusters]:
        """Return the clusters of some experts, from each alone down to none at all."""
        shape = get_structure_layout(evidence)
        bodies = shape.bodies(weight)[:, live.to(weight.device)]
        rows = bodies[:, :, shape.width - shape.routing :].transpose(0, 1).flatten(1)
        together = get_routing(evidence).coactivation.cpu()[live][:, live]
        cuts = _agglomerate(self._distance(rows.double().cpu(), together.double()), seed)
        return [[live[members].tolist() for members in cut] for cut in (*cuts, [])]

    def _distance(self, rows: Tensor, together: Tensor) -> Tensor:
        """Return the distances of experts, ``(n, n)`` float64."""
        exact = "donot_use_mm_for_euclid_dist"
        distance = self.mix_weight * torch.cdist(rows, rows, compute_mode=exact)
        if self.coactivation and together.any():
            pairs = len(together) * (len(together) - 1)
            distance -= together * (pairs / together.sum())
        return distance

    def _reduced(self, weight: Tensor, shape: StructureLayout, clusters: _Clusters) -> Tensor:
        """Return the matrix with one expert for each cluster, and zeros for the others."""
        average = len(clusters) <= self.merge_max_clusters
        made = torch.zeros_like(weight)
        old, new = shape.bodies(weight), shape.bodies(made)
        for members in clusters:
            bodies = old[:, members].float()
            mean = bodies.mean(dim=1)
            if average and len(members) > 1 and mean.to(weight).any():
                new[:, members[0]] = mean.to(weight)
                continue
            own = (bodies - mean[:, None])[:, :, : shape.width - shape.routing]
            away = own.square().sum(dim=(0, 2))
            kept = members[int(away.argmin())]
            new[:, kept] = old[:, kept]
        return made


def _agglomerate(distance: Tensor, seed: int) -> list[_Clusters]:
    """Return the clusters after 0, 1, … joins by complete linkage, down to one cluster.

    Args:
        distance: ``(n, n)`` float64, symmetric.
        seed: Decides between equal distances.
    """
    n = len(distance)
    order = draw_tie_breaks(torch.Size([n]), seed, distance.device)
    farthest = distance[order][:, order].fill_diagonal_(torch.inf)
    clusters = [[expert] for expert in order.tolist()]
    cuts = [[sorted(members) for members in clusters]]
    for _ in range(n - 1):
        one, other = (farthest == farthest.min()).nonzero()[0].tolist()
        farthest[one] = torch.maximum(farthest[one], farthest[other])
        farthest[:, one] = farthest[one]
        farthest[other], farthest[:, other] = torch.inf, torch.inf
        clusters[one] += clusters[other]
        clusters[other] = []
        cuts.append([sorted(members) for members in clusters if members])
    return cuts
