"""Presets against the numbers in the authors' repositories.

EvoPress: github.com/IST-DASLab/EvoPress, commit 50888a0. Týr-the-Pruner:
github.com/AMD-AGI/Tyr-the-Pruner, commit c69d040. The settings called super-fast are in the paper
(arXiv 2410.14649) alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsity_search.config.load import load_config
from sparsity_search.config.schema import RunConfig
from sparsity_search.engine.plugins import Plugins
from sparsity_search.profiles.budget import Budget
from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.searchers.bases.mutation import Mutation
from sparsity_search.searchers.evolution import EvolutionSearcher
from sparsity_search.spaces.files import SpaceFile, load_space
from sparsity_search.spaces.levels import SearchSpace
from sparsity_search.trials.history import Fidelity, History, Measurement, Score
from sparsity_search.utils.random import create_generator

#: Of each script: generations, offspring, tokens and survivors of each selection, most switches,
#: tokens to search on, stages; tokens to prune with, where the pruner needs some.
PUBLISHED: dict[str, dict[str, Any]] = {
    # scripts/run_prune_search.sh, scripts/run_sparse_gpt.sh; 3 in evo_prune_search.py
    "evopress": {
        "generations": 400, "offspring": 64, "stages": 1, "switches": 3,
        "tokens": (2048, 16384, 65536), "survivors": (8, 2, 1),
        "search": 524_288, "pruner": 8_388_608,
    },
    # arXiv 2410.14649; scripts/run_sparse_gpt.sh
    "evopress_superfast": {
        "generations": 400, "offspring": 16, "stages": 1, "switches": 3,
        "tokens": (512, 8192), "survivors": (1, 1),
        "search": 524_288, "pruner": 8_388_608,
    },
    # scripts/run_drop_search.sh, where k (n - k) / 1.5 generations are 128 for 8 of 32
    "evopress_drop": {
        "generations": 128, "offspring": 32, "stages": 1, "switches": 3,
        "tokens": (2048, 32768), "survivors": (2, 1),
        "search": 131_072, "pruner": None,
    },
    # script/example.sh; 4 in search_sparsity_dist.py; of its last 2 survivors one is the parent
    "tyr": {
        "generations": 50, "offspring": 128, "stages": 4, "switches": 4,
        "tokens": (2048, 16384, 131072), "survivors": (16, 4, 1),
        "search": 4_194_304, "pruner": 4_194_304,
    },
}  # fmt: skip

#: Student tokens of a whole search, in millions.
MILLIONS = {"evopress": 184, "evopress_superfast": 10, "evopress_drop": 21, "tyr": 236}

#: Weights of the linear layers of a block, from the configurations on the hub.
LLAMA_2_7B = {
    **dict.fromkeys("qkvo", 4096 * 4096),
    **dict.fromkeys(("gate", "up", "down"), 4096 * 11008),
}
MISTRAL_7B = {
    **dict.fromkeys("qo", 4096 * 4096),
    **dict.fromkeys("kv", 1024 * 4096),
    **dict.fromkeys(("gate", "up", "down"), 4096 * 14336),
}
SMOLLM2_135M = {
    **dict.fromkeys("qo", 576 * 576),
    **dict.fromkeys("kv", 192 * 576),
    **dict.fromkeys(("gate", "up", "down"), 576 * 1536),
}


def configured(name: str) -> RunConfig:
    return load_config(Path(name), {"model.name": "tiny", "budget.sparsity": 0.5})


def searcher_of(config: RunConfig) -> EvolutionSearcher:
    found = Plugins.of(config).searcher
    assert isinstance(found, EvolutionSearcher)
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_numbers_of_the_scripts(name: str) -> None:
    config, published = configured(name), PUBLISHED[name]
    ladder, data, study, searcher = config.ladder, config.data, config.study, searcher_of(config)
    # a generation before those of the script is random
    assert study.rounds == published["generations"] + searcher.random_rounds
    assert (study.stages, ladder.candidates) == (published["stages"], published["offspring"])
    assert tuple(rung.tokens for rung in ladder.rungs) == published["tokens"]
    assert tuple(rung.survivors for rung in ladder.rungs) == published["survivors"]
    assert (searcher.max_switches, searcher.strides) == (published["switches"], (1,))
    assert data.search_sequences * data.search_length == published["search"]
    if published["pruner"] is not None:
        assert data.calibration_sequences * data.calibration_length == published["pruner"]
    assert config.initial == ["uniform"]
    # `selection` draws a minibatch whenever it is called: for each rung of each generation
    assert (ladder.fresh, ladder.nested) == (True, False)


@pytest.mark.parametrize("name", PUBLISHED)
def test_student_tokens_of_a_search(name: str) -> None:
    config = configured(name)
    ladder, tokens = config.ladder, 0
    entering = ladder.candidates
    for index, rung in enumerate(ladder.rungs):
        tokens += (entering + ladder.joined(index)) * rung.tokens
        entering = rung.survivors
    generations = PUBLISHED[name]["generations"] * config.study.stages
    assert tokens * generations / 1e6 == pytest.approx(MILLIONS[name], rel=0.05)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_parent_joins_as_in_the_code(name: str) -> None:
    """``if num_survive == args.survivors_per_selection[-1]``: where as many survive as at last."""
    ladder, survivors = configured(name).ladder, PUBLISHED[name]["survivors"]
    joined = [ladder.joined(rung) for rung in range(len(ladder.rungs))]
    assert joined == [n == survivors[-1] for n in survivors]


def linears(sizes: dict[str, int], blocks: int) -> Layout:
    return Layout(
        [
            Unit(name=f"{block}.{role}", block=block, role=role, count=size)
            for block in range(blocks)
            for role, size in sizes.items()
        ]
    )


def levels_of_prune_py(numel: int, sparsity: float, weights_diff: int) -> tuple[int, int]:
    """Return the least and the greatest level that ``src/pruner.py`` makes of a layer."""
    least = min(int(sparsity // (weights_diff / numel)), 8)
    most = min(int((1 - sparsity) // (weights_diff / numel)), 8)
    return -least, most


def built(name: str, layout: Layout, sparsity: float, hidden_size: int) -> SearchSpace:
    file = load_space(name)
    assert isinstance(file, SpaceFile)
    return file.build(layout, Budget(sparsity), {}, hidden_size=hidden_size)


@pytest.mark.parametrize("sparsity", [0.5, 0.6, 0.7])
@pytest.mark.parametrize("sizes", [LLAMA_2_7B, MISTRAL_7B], ids=["llama-2-7b", "mistral-7b"])
def test_levels_of_the_script(sizes: dict[str, int], sparsity: float) -> None:
    """``WEIGHTS_DIFF=1000000``, ``NUM_LEVELS=8`` in scripts/run_sparse_gpt.sh."""
    assert {configured(name).space for name in ("evopress", "evopress_superfast")} == {"evopress"}
    space = built("evopress", linears(sizes, 4), sparsity, 4096)
    for gene, role in enumerate(space.roles):
        least, most = levels_of_prune_py(sizes[role], sparsity, 1_000_000)
        assert space.limits.of(gene) == range(least, most + 1)
        counts = [int(space.gene_counts(gene, level)[0]) for level in (-1, 0, 1)]
        assert np.diff(counts).tolist() == [1_000_000] * 2
        assert counts[1] == pytest.approx(sparsity * sizes[role], abs=1)


def test_levels_of_llama_2_7b_at_70_percent() -> None:
    """By hand: 30% of 16,777,216 are 5.03 steps, 70% 11.7; a reach of 8 cuts the rest."""
    space = built("evopress", linears(LLAMA_2_7B, 2), 0.7, 4096)
    limits = {role: space.limits.of(gene) for gene, role in enumerate(space.roles)}
    assert limits == {
        **dict.fromkeys("qkvo", range(-8, 6)),
        **dict.fromkeys(("gate", "up", "down"), range(-8, 9)),
    }


@pytest.mark.parametrize(
    ("sizes", "hidden_size", "sparsity", "step"),
    [
        (LLAMA_2_7B, 4096, 0.7, 314_572),  # 314,572.8 are rounded down
        (LLAMA_2_7B, 4096, 0.5, 524_288),
        (MISTRAL_7B, 4096, 0.7, 314_572),
        (SMOLLM2_135M, 576, 0.7, 6_220),
    ],
)
def test_the_default_step_of_prune_py(
    sizes: dict[str, int], hidden_size: int, sparsity: float, step: int
) -> None:
    """``int(0.5 * min(sparsity, 1 - sparsity) / num_levels * hidden_size**2)``."""
    space = built("evopress_default", linears(sizes, 2), sparsity, hidden_size)
    assert dict(space.facts)["step"] == step
    for gene, role in enumerate(space.roles):
        least, most = levels_of_prune_py(sizes[role], sparsity, step)
        assert space.limits.of(gene) == range(least, most + 1)


@pytest.mark.parametrize(("sparsity", "k"), [(0.25, 8), (0.375, 12), (0.5, 16)])
def test_the_first_generation_of_the_drop_search(sparsity: float, k: int) -> None:
    """``--initially_generated 64 --initial_tokens 2048``, k of 32 attentions and feed-forwards.

    `random.sample` draws both, so two candidates share k²/32 of each in the mean.
    """
    config = configured("evopress_drop")
    first, rung = config.ladder.in_round(1), config.ladder.in_round(1).rungs[0]
    assert (first.candidates, len(first.rungs)) == (64, 1)
    assert (rung.tokens, rung.survivors, first.joined(0)) == (2048, 1, False)

    sizes = (("attention", 41_943_040), ("feed_forward", 176_160_768))  # of Mistral-7B
    layout = Layout(
        [
            Unit(name=f"{block}.{role}", block=block, role=role, count=1, cost=cost)
            for block in range(32)
            for role, cost in sizes
        ]
    )
    space = built(config.space, layout, sparsity, 4096)
    start = Measurement(
        round=0, rung=1, candidate=space.origin, fidelity=Fidelity(32768), score=Score(1.0, ())
    )
    history = History([start], [(space.origin,)], fresh=True)
    rng = create_generator(0, "ask", 1)
    candidates = searcher_of(config).ask(space, history, first.candidates, rng)
    drops = np.array([space.profile(c).removed for c in candidates]).reshape(64, 32, 2)
    assert (drops.sum(axis=1) == k).all()
    shared = np.einsum("iab,jab->ij", drops, drops)[np.triu_indices(64, 1)].mean()
    assert shared == pytest.approx(2 * k * k / 32, rel=0.05)

    # and so do the children, of which none is the parent
    history.close_round(candidates[:1])
    children = searcher_of(config).ask(space, history, config.ladder.candidates, rng)
    drops = np.array([space.profile(c).removed for c in children]).reshape(-1, 32, 2)
    assert len(drops) == 32
    assert (drops.sum(axis=1) == k).all()
    assert candidates[0] not in children


def test_switches_are_drawn_as_in_the_code() -> None:
    """``min(randint(1, 3), randint(1, 3))`` switches: 1, 2 and 3 with 5/9, 3/9 and 1/9."""
    space = built("evopress", linears(LLAMA_2_7B, 8), 0.5, 4096)
    mutation = Mutation(max_switches=3, strides=(1,))
    rng = create_generator(0, "switches")
    moved = [
        np.abs(np.array(mutation.child(space, space.origin, rng))).sum() / 2 for _ in range(900)
    ]
    shares = [np.mean(np.array(moved) == n) for n in (1, 2, 3)]
    # a later switch may undo a part of an earlier one
    assert shares == pytest.approx([5 / 9, 3 / 9, 1 / 9], abs=0.06)


def test_tyr_has_the_levels_of_its_script() -> None:
    """``WEIGHTS_DIFF_MLP=5636096``, ``WEIGHTS_DIFF_MHA=2097152`` for Llama-2-7B, 9 levels."""
    config = configured("tyr")
    file = load_space(config.space)
    assert isinstance(file, SpaceFile)
    assert file.share is not None
    # of the weights of o_proj and down_proj, and half of that in each later stage
    assert (file.share * LLAMA_2_7B["o"], file.share * LLAMA_2_7B["down"]) == (
        2_097_152,
        5_636_096,
    )
    assert 2 * file.reach + 1 == 9
