"""A small model's layout, and random ones, for tests of formats."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.profiles.profile import SparsityProfile, from_counts

_PLACES = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "up": "mlp.up_proj"}


def family(sizes: dict[str, int], blocks: int, cost: int = 1) -> Layout:
    """Return the units of a model whose blocks all have the same sizes by role."""
    return Layout(
        [
            Unit(
                name=f"model.layers.{block}.{_PLACES[role]}",
                block=block,
                role=role,
                count=count,
                cost=cost,
            )
            for block in range(blocks)
            for role, count in sizes.items()
        ]
    )


#: 2 blocks of 10, 4 and 30 weights; 43 of 88 are removed.
LAYOUT = family({"q": 10, "k": 4, "up": 30}, 2)
PROFILE = from_counts(LAYOUT, [5, 1, 21, 8, 2, 6])


@st.composite
def profiles(draw: st.DrawFn, cost: int = 1) -> SparsityProfile:
    roles = draw(st.lists(st.sampled_from(sorted(_PLACES)), min_size=1, unique=True))
    layout = family(
        {role: draw(st.integers(1, 10**6)) for role in roles}, draw(st.integers(1, 12)), cost
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return from_counts(layout, rng.integers(0, layout.counts + 1))
