from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from sparsity_search.errors import ConfigError, InfeasibleBudgetError, UnknownNameError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Budget
from sparsity_search.profiles.layout import Layout, Unit
from sparsity_search.spaces.files import (
    ParametricFile,
    SpaceFile,
    bounds_of,
    load_space,
    space_names,
)
from sparsity_search.testing.models import tiny_llama
from sparsity_search.testing.problems import toy_layout
from sparsity_search.testing.searcher import assert_legal
from sparsity_search.utils.random import create_generator
from tests.helpers.families import ALL_FAMILIES

LAYOUT = PrunableModel(tiny_llama(layers=2)).layout
FILES = Path(__file__).parents[2] / "search_spaces"
N_GENES = {"per_block": 2, "per_linear": 14, "per_role": 7, "per_sublayer": 4}
PATTERNS = {
    "two_of_four": (0.1, 0.25, 0.4),
    "four_of_eight": (0.1, 0.25, 0.4),
    "n_of_eight": (0.1, 0.5, 0.95),
}
UNEVEN = {"dense_or_sparse", "eighths", "sixty_fourths", "equal_drops"}
#: Spaces whose step is a number of weights, not a fraction of this model's.
ABSOLUTE = {"evopress", "evopress_default"}
PARAMETRIC = {name for name in space_names() if isinstance(load_space(name), ParametricFile)}
STEPPED = sorted(set(space_names()) - set(PATTERNS) - PARAMETRIC - UNEVEN - ABSOLUTE)


def structured(*units: tuple[str, int, int]) -> Layout:
    """Return six blocks that have these units: role, structures, weights in each."""
    return Layout(
        [
            Unit(name=f"{block}.{role}", block=block, role=role, count=count, cost=cost)
            for block in range(6)
            for role, count, cost in units
        ]
    )


#: Blocks of SmolLM2-135M, as they are cut into structures.
STRUCTURED = {
    "width": structured(("attention", 3, 294_912), ("feed_forward", 1_536, 1_728)),
    "sublayers": structured(("attention", 1, 884_736), ("feed_forward", 1, 2_654_208)),
    "blocks": structured(("block", 1, 3_538_944)),
}


def space_of_levels(name: str) -> SpaceFile:
    """Return a space of levels."""
    found = load_space(name)
    assert isinstance(found, SpaceFile)
    return found


def write(folder: Path, **changes: object) -> str:
    value = {"version": 1, "description": "x", "gene": ["block"], "step": 0.1, "reach": 3}
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump({**value, **changes}))
    return str(path)


def test_names_are_the_files() -> None:
    assert space_names() == sorted(file.stem for file in FILES.iterdir())
    assert set(N_GENES) <= set(space_names())


@pytest.mark.parametrize("target", [0.1, 0.5, 0.7, 0.95])
@pytest.mark.parametrize("name", STEPPED)
def test_every_space_builds(name: str, target: float) -> None:
    space = space_of_levels(name).build(LAYOUT, Budget(target), {})
    assert space.n_genes == N_GENES.get(name, space.n_genes)
    rng = create_generator(0, name)
    for _ in range(20):
        profile = space.profile(space.sample(rng))
        assert profile.n_removed == Budget(target).n_removed(LAYOUT)


@pytest.mark.parametrize("target", [0.5, 0.7])
@pytest.mark.parametrize("name", STEPPED)
def test_every_space_has_room(name: str, target: float) -> None:
    space = space_of_levels(name).build(LAYOUT, Budget(target), {})
    assert (space.limits.lower < 0).all()
    assert (space.limits.upper > 0).all()


@pytest.mark.parametrize(("name", "target"), [(n, t) for n in PATTERNS for t in PATTERNS[n]])
def test_spaces_of_patterns(name: str, target: float) -> None:
    space = space_of_levels(name).build(LAYOUT, Budget(target), {})
    assert space.n_genes == len(LAYOUT)
    groups = {"two_of_four": {0, 2}, "four_of_eight": {0, 4}}.get(name, set(range(9)))
    size = 4 if name == "two_of_four" else 8
    for unit, table in zip(LAYOUT, space.tables(), strict=True):
        assert {count * size / unit.count for count in table} <= groups
        assert len(table) > 1
    assert_legal(space, [space.sample(create_generator(i, name)) for i in range(20)])


@pytest.mark.parametrize("target", [0.25, 0.5])
@pytest.mark.parametrize("layout", STRUCTURED.values(), ids=STRUCTURED)
@pytest.mark.parametrize("name", STEPPED)
def test_every_space_of_structures(name: str, layout: Layout, target: float) -> None:
    space = space_of_levels(name).build(layout, Budget(target), {})
    assert_legal(
        space, [space.origin, *(space.sample(create_generator(i, name)) for i in range(10))]
    )
    assert space.base.n_removed - Budget(target).n_removed(layout) < min(layout.costs)
    assert (space.limits.upper - space.limits.lower > 0).all()


def test_channels_and_groups() -> None:
    layout = STRUCTURED["width"]
    space = space_of_levels("per_linear").build(layout, Budget(0.25), {})
    assert space.genes == tuple((i,) for i in range(12))
    assert space.step == 100 * 1_728  # a quarter of the channels that the uniform profile removes
    for groups, channels in zip(space.tables()[::2], space.tables()[1::2], strict=True):
        assert groups == (0, 1, 2, 3)
        assert channels[0] == 0
        assert set(np.diff(channels[1:]).tolist()) == {100}
        assert len(channels) >= 13
    assert space.limits.lower[1::2].max() <= -4
    assert space.limits.upper[1::2].min() == 8


def test_tied_structures() -> None:
    space = space_of_levels("per_sublayer").build(STRUCTURED["width"], Budget(0.5), {})
    assert space.genes == tuple((i,) for i in range(12))
    space = space_of_levels("per_block").build(STRUCTURED["sublayers"], Budget(0.5), {})
    for gene in range(space.n_genes):
        levels = range(int(space.limits.lower[gene]), int(space.limits.upper[gene]) + 1)
        chain = [tuple(space.gene_counts(gene, level).tolist()) for level in levels]
        assert (chain[0], chain[-1]) == ((0, 0), (1, 1))
        assert len(chain) > 2
    space = space_of_levels("per_block").build(STRUCTURED["width"], Budget(0.5), {})
    for gene in range(space.n_genes):
        counts = np.array([space.gene_counts(gene, level) for level in range(-10, 11)])
        # a level moves the same weights in every block, to one channel
        assert np.abs(np.diff(counts @ [294_912, 1_728]) - space.step).max() <= 1_728
        sparsity = counts / [3, 1_536]
        assert np.abs(sparsity[:, 0] - sparsity[:, 1]).max() < 0.5


def test_a_pattern_and_unequal_bounds() -> None:
    space = space_of_levels("n_of_eight").build(LAYOUT, Budget(0.4), {"q": (0.2, 0.6)})
    tables = dict(zip(LAYOUT, space.tables(), strict=True))
    for unit, table in tables.items():
        low, high = (0.2, 0.6) if unit.role == "q" else (0, 1)
        assert low <= table[0] / unit.count <= table[-1] / unit.count <= high


@pytest.mark.parametrize("name", space_names())
def test_every_space_says_what_it_is(name: str) -> None:
    assert load_space(name).description
    assert (FILES / f"{name}.yaml").read_text().startswith("# ")


def test_genes_of_sublayers() -> None:
    space = space_of_levels("per_sublayer").build(LAYOUT, Budget(0.5), {})
    roles = [{LAYOUT[i].role for i in gene} for gene in space.genes]
    assert roles == [{"q", "k", "v", "o"}, {"gate", "up", "down"}] * 2
    assert [{LAYOUT[i].block for i in gene} for gene in space.genes] == [{0}, {0}, {1}, {1}]


def test_step_is_a_fraction_of_the_smallest_gene(tmp_path: Path) -> None:
    file = space_of_levels(write(tmp_path, gene=["name"], step=0.1))
    assert file.build(toy_layout(50, 300), Budget(0.5), {}).step == 5
    assert file.build(toy_layout(3, 300), Budget(0.5), {}).step == 1
    assert file.build(toy_layout(50, 300, cost=8), Budget(0.5), {}).step == 40


@pytest.mark.parametrize("target", [0.05, 0.95])
def test_the_step_leaves_room_at_extreme_targets(tmp_path: Path, target: float) -> None:
    file = space_of_levels(write(tmp_path, gene=["name"], step=1.0, reach=8))
    space = file.build(toy_layout(400, 400), Budget(target), {})
    assert space.step == 5  # a quarter of the 20 weights between the target and the bound
    assert (np.minimum(-space.limits.lower, space.limits.upper) == 4).all()


def test_bounds_of_the_file_and_over_it(tmp_path: Path) -> None:
    file = space_of_levels(write(tmp_path, bounds={"q": [0.2, 0.6], "k": [0.3, 0.7]}))
    space = file.build(toy_layout(10, 10, 10), Budget(0.5), {"k": (0.4, 0.5)})
    assert space.bounds.lower.tolist() == [2, 4, 0]
    assert space.bounds.upper.tolist() == [6, 5, 10]


def test_infeasible_bounds(tmp_path: Path) -> None:
    file = space_of_levels(write(tmp_path))
    with pytest.raises(InfeasibleBudgetError, match="out of reach"):
        file.build(toy_layout(10, 10), Budget(0.5), {"q": (0, 0.4), "k": (0, 0.5)})


def test_bounds_of_roles() -> None:
    bounds = bounds_of(toy_layout(10, 20, 10, 10, 100), {"q": (0.1, 0.5)})
    np.testing.assert_array_equal(bounds.lower, [1, 0, 0, 0, 10])
    np.testing.assert_array_equal(bounds.upper, [5, 20, 10, 10, 50])


def test_unknown_role() -> None:
    with pytest.raises(UnknownNameError, match=r"'donw': did you mean 'down'"):
        bounds_of(toy_layout(1, 1, 1, 1), {"donw": (0, 1)})


@pytest.mark.parametrize("limits", [(0.5, 0.4), (-0.1, 0.5), (0.5, 1.1)])
def test_illegal_bounds(limits: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="LOW <= HIGH"):
        bounds_of(toy_layout(10), {"q": limits})


def test_unknown_name() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'per_block'"):
        load_space("per_blok")
    with pytest.raises(UnknownNameError, match=r"nowhere\.yaml"):
        load_space("nowhere.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reech": 3}, "reech"),
        ({"version": 2}, "version"),
        ({"gene": []}, "gene"),
        ({"gene": ["layer"]}, "gene"),
        ({"step": 0}, "step"),
        ({"step": None, "weights": 0}, "weights"),
        ({"step": None, "weights": "by_size"}, "weights"),
        ({"reach": 0}, "reach"),
        ({"reach": 10**30}, "too large"),
        ({"reach": 10**9}, "reach"),
        ({"step": float("inf")}, "step"),
        ({"bounds": {"q": [0.1]}}, r"bounds\.q"),
        ({"step": None}, "space .*: .*one of step, weights, share, pattern and options"),
        ({"pattern": "2:4"}, "space .*: .*one of step, weights, share, pattern and options"),
        (
            {"options": {"2:4": 0.5}},
            "space .*: .*one of step, weights, share, pattern and options",
        ),
        ({"step": None, "options": {}}, "options"),
        ({"step": None, "options": {"*:4": 0.5}}, r"options\.\*:4"),
        ({"step": None, "options": {124: 0.5}}, r"options\.124"),  # 2:4 without quotes
        ({"step": None, "options": {"2:4": 0}}, r"options\.2:4"),
        ({"step": None, "options": {"2:4": 1.1}}, r"options\.2:4"),
        ({"step": None, "options": ["2:4", "*:4"]}, r"options\.\*:4"),
        ({"step": None, "options": {"2:4": 0.5, "4:8": None}}, "all options .* or none"),
        ({"step": None, "options": {"2:4": 0.5}, "budget_per": "role"}, "leave out budget_per"),
        ({"budget_per": "block"}, "budget_per"),
        ({"reach": 0, "step": 2}, r"step.*; reach|reach.*; step"),
    ],
)
def test_faults_of_a_file(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_space(write(tmp_path, **changes))


@pytest.mark.parametrize("text", ["a: [", "3", ""])
def test_not_a_space(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"space '.*x\.yaml'"):
        load_space(str(tmp_path / "x.yaml"))


def test_steps_in_weights(tmp_path: Path) -> None:
    file = space_of_levels(write(tmp_path, gene=["name"], step=None, weights=7))
    space = file.build(toy_layout(50, 300), Budget(0.5), {})
    assert space.step == 7
    assert file.build(toy_layout(50, 300, cost=2), Budget(0.5), {}).step == 8  # whole items
    with pytest.raises(ConfigError, match=r"7 weights is too large .* at sparsity 0\.9: .*step"):
        file.build(toy_layout(50, 60), Budget(0.9), {})
    default = space_of_levels("evopress_default")
    with pytest.raises(ConfigError, match="needs the hidden size"):
        default.build(toy_layout(50, 300), Budget(0.5), {})
    assert default.build(toy_layout(50, 300), Budget(0.5), {}, hidden_size=16).step == 8


def test_bad_pattern(tmp_path: Path) -> None:
    file = space_of_levels(write(tmp_path, step=None, pattern="4:2"))
    with pytest.raises(ConfigError, match="pattern of a space must be N:M"):
        file.build(toy_layout(8, 8), Budget(0.5), {})


def test_role_without_a_group(tmp_path: Path) -> None:
    file = space_of_levels(write(tmp_path, gene=["group"], groups={"attention": ["q", "k"]}))
    with pytest.raises(ConfigError, match=r"no group for role 'up' of layers\.0\.up"):
        file.build(toy_layout(1, 1, 1), Budget(0.5), {})


def named(*units: tuple[str, str]) -> Layout:
    """Return two blocks that have units of these names and roles."""
    return Layout(
        [
            Unit(name=f"model.layers.{block}.{name}", block=block, role=role, count=8)
            for block in range(2)
            for name, role in units
        ]
    )


def test_roles_without_a_group_go_with_their_module() -> None:
    layout = named(
        ("attn.q_a", "q_a"), ("attn.o", "o"), ("mixer.in_proj", "in"), ("mixer.out_proj", "out"),
        ("mlp.experts.0.wide", "w"), ("mlp.experts.1.wide", "w"), ("mlp.gate", "gate"),
    )  # fmt: skip
    file = load_space("per_sublayer")
    assert isinstance(file, SpaceFile)
    genes = file.build(layout, Budget(0.5), {}).genes
    assert genes[:4] == ((0, 1), (2, 3), (4, 5), (6,))
    assert len(genes) == 8


def test_a_module_of_several_groups_is_one_of_its_own(tmp_path: Path) -> None:
    groups = {"wide": ["up"], "narrow": ["down"]}
    file = space_of_levels(write(tmp_path, gene=["group"], groups=groups))
    layout = named(("mlp.up", "up"), ("mlp.down", "down"), ("mlp.mid", "mid"))
    assert file.build(layout, Budget(0.5), {}).genes == ((0, 3), (1, 4), (2, 5))


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_sublayers_of_families(family: str) -> None:
    layout = PrunableModel(ALL_FAMILIES[family]()).layout
    file = load_space("per_sublayer")
    assert isinstance(file, SpaceFile)
    space = file.build(layout, Budget(0.5), {})
    assert len({layout[gene[0]].block for gene in space.genes}) == 3
    assert len(space.genes) == {"mamba": 3, "mamba2": 3, "falcon_h1": 9}.get(family, 6)


def test_space_of_levels_is_its_own() -> None:
    assert space_of_levels("per_block").of_levels == space_of_levels("per_block")
