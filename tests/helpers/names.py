"""Names of pruners by what they remove."""

from __future__ import annotations

from sparsity_search.registry import PRUNERS

OF_WEIGHTS = [name for name in PRUNERS.names() if "weights" in PRUNERS.get(name).units]
OF_STRUCTURES = [name for name in PRUNERS.names() if name not in OF_WEIGHTS]
#: Those of mixtures of experts only, which most tiny models do not have.
OF_EXPERTS = [name for name in OF_STRUCTURES if PRUNERS.get(name).units == ("experts",)]
