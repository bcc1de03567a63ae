from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsity_search.errors import ConfigError, InfeasibleBudgetError
from sparsity_search.profiles.profile import from_counts
from sparsity_search.spaces.prices import PriceCurve, Prices
from sparsity_search.spaces.step_levels import StepLevels
from sparsity_search.testing.problems import toy_curves, toy_layout, toy_space

LAYOUT = toy_layout(3, 48, cost=(96, 9))
HEADS, CHANNELS = toy_curves()


def saved(prices: Prices, unit: int) -> np.ndarray:
    """Return what a unit saves with each number of items removed."""
    counts = np.arange(prices.layout[unit].count + 1)
    return prices.at([unit], counts[:, None])[:, 0]


def test_shares_of_what_all_cost() -> None:
    prices = Prices(LAYOUT, "time", [HEADS, CHANNELS])
    # 27 and 15 of 42 in all, in 720 weights
    assert saved(prices, 0).tolist() == [0, 154, 309, 463]
    assert saved(prices, 1)[[0, 15, 16, 32, 48]].tolist() == [0, 0, 86, 171, 257]
    assert prices.costs.tolist() == [463, 257]
    both = prices.at((1, 0), np.array([[16, 1], [48, 0]]))
    assert both.tolist() == [[86, 154], [257, 0]]


def test_unit_of_measure_means_nothing() -> None:
    other = [
        PriceCurve(c.removed, tuple(7 + 1000 * s for s in c.saved)) for c in (HEADS, CHANNELS)
    ]
    mine, theirs = Prices(LAYOUT, "time", [HEADS, CHANNELS]), Prices(LAYOUT, "time", other)
    assert mine.digest == theirs.digest
    for unit in range(2):
        assert saved(mine, unit).tolist() == saved(theirs, unit).tolist()


def test_where_a_curve_falls_nothing_more_is_saved() -> None:
    noisy = PriceCurve((0, 1, 2, 3), (0.0, 2.0, 1.0, 4.0))
    prices = Prices(LAYOUT, "time", [noisy, PriceCurve((0, 48), (0.0, 4.0))])
    assert saved(prices, 0).tolist() == [0, 180, 180, 360]


@given(st.lists(st.floats(-5, 100), min_size=2, max_size=6), st.floats(0.1, 50))
def test_prices_never_fall_and_add_up(times: list[float], other: float) -> None:
    counts = np.unique(np.linspace(0, 48, len(times)).astype(int))
    curves = [
        PriceCurve((0, 3), (0.0, other)),
        PriceCurve(tuple(map(int, counts)), tuple(times[: len(counts)])),
    ]
    prices = Prices(LAYOUT, "time", curves)
    scale = LAYOUT.n_weights / (other + max(0.0, *(np.array(times) - times[0])))
    for unit, (removed, real) in enumerate(curves):
        each = saved(prices, unit)
        assert each[0] == 0
        # the most that any number of items up to this one saves
        line = np.interp(np.arange(len(each)), removed, np.array(real) - real[0])
        assert np.abs(each - scale * np.maximum.accumulate(line)).max() <= 0.5 + 1e-6 * scale
    assert abs(prices.costs.sum() - LAYOUT.n_weights) <= 1


@pytest.mark.parametrize(
    "curve",
    [
        PriceCurve((0, 40), (0.0, 1.0)),
        PriceCurve((1, 48), (0.0, 1.0)),
        PriceCurve((0, 9, 9, 48), (0.0, 1.0, 1.0, 1.0)),
        PriceCurve((0, 48), (0.0, float("nan"))),
        PriceCurve((0, 48), (0.0, 1.0, 2.0)),
        PriceCurve((), ()),
    ],
)
def test_bad_curves_are_named(curve: PriceCurve) -> None:
    with pytest.raises(ConfigError, match=r"the time of layers\.0\.k must be .* 0 to 48 items"):
        Prices(LAYOUT, "time", [HEADS, curve])


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("saved", [0.0, "1"], r"saved\.1: must be .*number"),
        ("saved", [0.0, float("inf")], r"saved\.1: must be a finite number"),
        ("removed", [0, 1.5], r"removed\.1: must be .*integer"),
        ("removed", [0], "removed: .*at least 2"),
        ("patterns", [1], "patterns: must be .*mapping"),
    ],
)
def test_values_of_the_wrong_type_are_named(key: str, value: object, words: str) -> None:
    stored = Prices(LAYOUT, "time", [HEADS, CHANNELS]).to_json()
    stored["units"]["layers.0.q"][key] = value
    with pytest.raises(ConfigError, match=f"not a file of prices: units.layers.0.q.{words}"):
        Prices.from_json(LAYOUT, stored)


def test_something_must_be_saved() -> None:
    with pytest.raises(ConfigError, match="no unit saves any time"):
        Prices(LAYOUT, "time", [PriceCurve((0, 3), (0.0, 0.0)), PriceCurve((0, 48), (0.0, -1.0))])
    with pytest.raises(ConfigError, match="1 curves of time for 2 units"):
        Prices(LAYOUT, "time", [HEADS])


def test_json_round_trip() -> None:
    prices = Prices(LAYOUT, "time", [HEADS, CHANNELS])
    stored = json.loads(json.dumps(prices.to_json()))
    assert Prices.from_json(LAYOUT, stored).digest == prices.digest
    assert Prices(LAYOUT, "money", prices.curves).digest != prices.digest
    with pytest.raises(ConfigError, match="of another model"):
        Prices.from_json(toy_layout(3, 48, 5, cost=2), stored)
    with pytest.raises(ConfigError, match="format 2"):
        Prices.from_json(LAYOUT, {**stored, "format": 2})
    for broken in (None, [], {}, {"format": 1, "measure": "x", "units": {"a": 3}}):
        with pytest.raises(ConfigError, match="not a file of prices"):
            Prices.from_json(LAYOUT, broken)


def test_a_budget_in_time_is_met_in_time() -> None:
    """Every candidate saves the target, and no level of it could be taken back."""
    curves = toy_curves() * 2
    space = toy_space(3, 48, 3, 48, cost=(96, 9) * 2, target=0.4, step=72, reach=9, curves=curves)
    prices = Prices(space.layout, "time", curves)
    tables = [saved(prices, unit) for unit in range(4)]
    ranges = [
        range(low, high + 1)
        for low, high in zip(space.limits.lower, space.limits.upper, strict=True)
    ]
    n_legal = 0
    for candidate in itertools.product(*ranges):
        levels = zip(space.genes, candidate, strict=True)
        counts = [int(space.gene_counts(g, lv)[0]) for (g,), lv in levels]
        total = sum(int(tables[i][count]) for i, count in enumerate(counts))
        back = [
            int(tables[g][counts[g]] - tables[g][space.gene_counts(g, level - 1)[0]])
            for g, level in enumerate(candidate)
            if level > space.limits.lower[g]
        ]
        target = 0.4 * space.layout.n_weights
        legal = total >= target and all(total - step < target for step in back)
        # at the edge of the space a level less is not known
        inside = all(lv > low for lv, low in zip(candidate, space.limits.lower, strict=True))
        if inside:
            assert (candidate in space) == legal
        n_legal += candidate in space
        if candidate in space:
            assert space.saved(space.profile(candidate)).sum() == total
    assert n_legal > 5


def test_channels_of_an_open_tile_stay() -> None:
    space = toy_space(3, 48, cost=(96, 9), target=0.2, step=9, reach=99, curves=toy_curves())
    channels = {
        int(space.gene_counts(1, level)[0]) for level in range(-3, 4) if _has(space, level)
    }
    assert channels <= {0, 16, 32, 48}


def _has(space: object, level: int) -> bool:
    levels = space.limits  # type: ignore[attr-defined]
    return bool(levels.lower[1] <= level <= levels.upper[1])


def test_uniform_saves_alike() -> None:
    """Straight prices: equal shares of time, whatever the units weigh."""
    curves = [PriceCurve((0, 200), (0.0, w)) for w in (1.0, 5.0, 2.0, 8.0)]
    space = toy_space(*(200,) * 4, cost=(3, 2, 5, 7), target=0.3, share=0.01, curves=curves)
    assert np.abs(np.array(space.base.sparsities) - 0.3).max() < 0.01


def test_nearest_inverts_profile() -> None:
    space = toy_space(*(3, 48) * 3, cost=(96, 9) * 3, target=0.4, step=36, curves=toy_curves() * 3)
    rng = np.random.default_rng(0)
    for _ in range(50):
        candidate = space.sample(rng, 2.0)
        assert space.nearest(space.profile(candidate)) == candidate
    uniform = space.budget.uniform(space.layout)
    assert space.nearest(uniform) in space


def test_single_weights_have_prices() -> None:
    """Bytes with a bit mask: nothing up to 1/16 zeros, and two a zero from there on."""
    sizes = (4096, 40_960, 4096, 8192)
    curves = [PriceCurve((0, n // 16, n), (0.0, 0.0, 2.0 * (n - n // 16))) for n in sizes]
    space = toy_space(*sizes, target=0.4, step=256, curves=curves)
    assert isinstance(space, StepLevels)
    # 0.4 of 15/16 beyond the first sixteenth
    assert np.abs(np.array(space.base.sparsities) - (1 / 16 + 0.4 * 15 / 16)).max() < 0.1
    for seed in range(20):
        profile = space.profile(space.sample(np.random.default_rng(seed), 2.0))
        pairs = zip(profile.removed, sizes, strict=True)
        bytes_saved = sum(max(0.0, 2 * (removed - n // 16)) for removed, n in pairs)
        share = bytes_saved / (2 * 15 / 16 * sum(sizes))
        assert 0.4 - 1e-3 <= share < 0.4 + 256 / (15 / 16 * sum(sizes)) + 1e-3  # one step


def test_large_layers_of_single_weights_stay_cheap() -> None:
    n = 50_000_000
    curves = [PriceCurve((0, n), (0.0, 1.0)), PriceCurve((0, n), (0.0, 3.0))]
    space = toy_space(n, n, target=0.5, share=0.125, curves=curves)
    assert space.saved(space.base).sum() >= n
    assert np.abs(np.array(space.base.sparsities) - 0.5).max() < 0.01
    assert len(space.digest) == 16


PATTERNED = toy_layout(80, 24)
LINES = [PriceCurve((0, 80), (0.0, 8.0)), PriceCurve((0, 24), (0.0, 5.0))]


def test_patterns_have_prices() -> None:
    prices = Prices(PATTERNED, "time", LINES, {"2:4": (3.0, 2.6), "4:8": (1.0, 0.0)})
    # 13 in all, in 104 weights
    assert prices.of_pattern("2:4").tolist() == [24, 21]
    assert prices.of_pattern("4:8").tolist() == [8, 0]
    stored = json.loads(json.dumps(prices.to_json()))
    again = Prices.from_json(PATTERNED, stored)
    assert again.digest == prices.digest
    assert again.of_pattern("2:4").tolist() == [24, 21]
    assert Prices(PATTERNED, "time", LINES).digest != prices.digest
    del stored["units"]["layers.0.k"]["patterns"]["4:8"]
    with pytest.raises(ConfigError, match="lacks a pattern"):
        Prices.from_json(PATTERNED, stored)


@pytest.mark.parametrize("each", [(1.0,), (1.0, float("nan")), (1.0, 2.0, 3.0)])
def test_bad_patterns_are_named(each: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=r"the time of 2:4 must be"):
        Prices(PATTERNED, "time", LINES, {"2:4": each})


def test_out_of_reach() -> None:
    with pytest.raises(
        InfeasibleBudgetError, match=r"saving 0\.5 is out of reach: the bounds allow"
    ):
        toy_space(
            *(3, 48), cost=(96, 9), target=0.5, upper=np.array([0.4, 0.4]), curves=toy_curves()
        )


def test_the_digest_knows_the_prices() -> None:
    def digest(*curves: PriceCurve) -> str:
        return toy_space(3, 48, cost=(96, 9), target=0.4, step=36, curves=curves).digest

    plain = toy_space(3, 48, cost=(96, 9), target=0.4, step=36).digest
    other = PriceCurve((0, 3), (0.0, 12.0))
    assert len({plain, digest(HEADS, CHANNELS), digest(other, CHANNELS)}) == 3


def test_finer_levels_keep_the_prices() -> None:
    space = toy_space(*(3, 48) * 2, cost=(96, 9) * 2, target=0.4, step=72, curves=toy_curves() * 2)
    finer = space.refined(space.base)
    assert finer.prices is space.prices
    assert int(finer.saved(finer.base).sum()) >= 0.4 * space.layout.n_weights
    counts = from_counts(space.layout, [1, 0, 1, 0])
    assert finer.saved(counts).tolist() == [154, 0, 154, 0]
