from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsity_search.errors import ConfigError, InfeasibleBudgetError, ProfileError
from sparsity_search.formats.evopress import EvopressFormat
from sparsity_search.interfaces.format import ProfileDocument
from sparsity_search.profiles.budget import Budget
from sparsity_search.profiles.profile import SparsityProfile, from_counts
from tests.helpers.documents import LAYOUT, PROFILE, family, profiles

BY_HAND = """model.layers.0.self_attn.q_proj: -1
model.layers.0.self_attn.k_proj: 0

model.layers.0.mlp.up_proj: +2
model.layers.1.self_attn.q_proj : 1
model.layers.1.self_attn.k_proj:0
model.layers.1.mlp.up_proj: -2
"""


def test_by_hand() -> None:
    # half of 10, 4, 30 each, and levels of 2 weights whatever the size
    profile = EvopressFormat(sparsity=0.5, step=2).read(BY_HAND, LAYOUT).profile
    assert profile.removed == (3, 2, 19, 7, 2, 11)


def test_the_sizes_of_a_llama_block() -> None:
    # spec: 70 %, steps of a million: 4096 x 4096 at level 5 is 99.8 %, at -8 it is 22 %
    layout = family({"q": 4096 * 4096, "up": 4096 * 14336}, 1)
    text = "model.layers.0.self_attn.q_proj: 5\nmodel.layers.0.mlp.up_proj: -5\n"
    profile = EvopressFormat(sparsity=0.7, step=1_000_000).read(text, layout).profile
    np.testing.assert_allclose(profile.sparsities, [0.998, 0.7 - 0.0851], atol=1e-4)


def test_written() -> None:
    # 43 of 88 is 0.488636; wanted 0.11, -0.95, 6.34, 3.11, 0.05, -8.66 weights; steps of 3
    lines = EvopressFormat(step=3, sparsity=43 / 88).write(ProfileDocument(PROFILE)).splitlines()
    assert lines[0] == "model.layers.0.self_attn.q_proj: 0"
    assert [int(line.split(": ")[1]) for line in lines] == [0, 0, 2, 1, 0, -3]


def levels_of(text: str) -> np.ndarray:
    return np.array([int(line.rpartition(":")[2]) for line in text.splitlines()])


@settings(max_examples=30)
@given(profile=profiles(), step=st.integers(1, 10**5), most=st.integers(1, 12))
def test_written_levels_are_legal(profile: SparsityProfile, step: int, most: int) -> None:
    if not 0 < profile.sparsity < 1:
        return
    levels = levels_of(
        EvopressFormat(step=step, sparsity=profile.sparsity, max_level=most).write(
            ProfileDocument(profile)
        )
    )
    assert levels.sum() == 0
    assert np.abs(levels).max() <= most
    sparsities = profile.sparsity + levels * step / profile.layout.counts
    assert (sparsities > -1e-9).all()
    assert (sparsities < 1 + 1e-9).all()


def test_written_levels_are_the_nearest() -> None:
    for removed in [(9, 0, 13, 0, 0, 13), (1, 4, 13, 10, 1, 29), PROFILE.removed]:
        profile = from_counts(LAYOUT, removed)
        wanted = (np.array(removed) - profile.sparsity * LAYOUT.counts) / 4
        found = levels_of(
            EvopressFormat(step=4, sparsity=profile.sparsity, max_level=3).write(
                ProfileDocument(profile)
            )
        )
        lows = -np.minimum(profile.sparsity * LAYOUT.counts // 4, 3).astype(int)
        highs = np.minimum((1 - profile.sparsity) * LAYOUT.counts // 4, 3).astype(int)
        legal = itertools.product(*(range(a, b + 1) for a, b in zip(lows, highs, strict=True)))
        errors = [((np.array(x) - wanted) ** 2).sum() for x in legal if sum(x) == 0]
        assert ((found - wanted) ** 2).sum() == pytest.approx(min(errors))


@settings(max_examples=30)
@given(half=st.lists(st.integers(-2, 2), min_size=3, max_size=3))
def test_levels_come_back(half: list[int]) -> None:
    levels = [*half, *(-level for level in half)]
    layout = family({"q": 1000, "up": 3000}, 3)
    format_ = EvopressFormat(sparsity=0.7, step=100)
    text = "".join(f"{u.name}: {n}\n" for u, n in zip(layout, levels, strict=True))
    assert format_.write(format_.read(text, layout)) == text


def test_a_uniform_profile_is_all_zeros() -> None:
    profile = Budget(0.7).uniform(LAYOUT)
    assert not levels_of(
        EvopressFormat(step=3, sparsity=0.7).write(ProfileDocument(profile))
    ).any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BY_HAND.replace(": -1", ""), r"line 1: 'layer: level' is needed"),
        (BY_HAND.replace(": -1", ": 0.5"), r"line 1: 'layer: level' is needed"),
        (BY_HAND.replace(": -1", ": " + "9" * 5000), r"line 1"),
        (BY_HAND.replace(": -1", ": 0"), "levels sum to 1, and EvoPress's to 0"),
        (
            BY_HAND.replace(": -1", ": 3").replace(": 1", ": -3"),
            r"q_proj: level 3 of 2 weights.*is sparsity 1\.1",
        ),
        (
            BY_HAND.replace(": -1", ": -3").replace("+2", "4"),
            r"q_proj: level -3 .*is sparsity -0\.1",
        ),
        (BY_HAND + "model.layers.0.mlp.up_proj: 1", r"line 8: .*has a level already"),
        (BY_HAND.replace("k_proj:0", "kproj:0"), "no unit is called"),
        ("", "no value for 6 units"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        EvopressFormat(sparsity=0.5, step=2).read(text, LAYOUT)


@pytest.mark.parametrize(("known", "missing"), [("step", "sparsity"), ("sparsity", "step")])
def test_levels_alone_say_nothing(known: str, missing: str) -> None:
    given_: dict[str, Any] = {"step": {"step": 2}, "sparsity": {"sparsity": 0.5}}[known]
    with pytest.raises(ConfigError, match=rf"--set evopress\.{missing}="):
        EvopressFormat(**given_).read(BY_HAND, LAYOUT)
    with pytest.raises(ConfigError, match=rf"--set evopress\.{missing}="):
        EvopressFormat(**given_).write(ProfileDocument(PROFILE))


@pytest.mark.parametrize("sparsity", [0.9, 0.9 + 1e-13])  # (1 - 0.9) * 1000 is below 100
def test_levels_that_end_at_zero_and_one(sparsity: float) -> None:
    profile = from_counts(family({"q": 1000}, 10), [1000] * 9 + [0])
    format_ = EvopressFormat(sparsity=sparsity, step=100, max_level=9)
    text = format_.write(ProfileDocument(profile))
    assert levels_of(text).tolist() == [1] * 9 + [-9]
    assert format_.read(text, profile.layout).profile == profile


def test_structures_are_refused() -> None:
    profile = Budget(0.5).uniform(family({"q": 10}, 2, cost=4))
    with pytest.raises(ProfileError, match="removes structures"):
        EvopressFormat(step=1, sparsity=0.5).write(ProfileDocument(profile))


def test_a_base_that_is_too_far_is_refused() -> None:
    with pytest.raises(InfeasibleBudgetError, match=r"evopress\.sparsity"):
        EvopressFormat(step=1, sparsity=0.05, max_level=1).write(ProfileDocument(PROFILE))


@pytest.mark.parametrize(
    "wrong", [{"sparsity": 0}, {"sparsity": 1.0}, {"step": 0}, {"step": 1.5}, {"max_level": 0}]
)
def test_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        EvopressFormat(**wrong)
