"""What every format does: round trips, one-line errors, and a name that says what it is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsity_search.errors import ConfigError, ProfileError, SparsitySearchError
from sparsity_search.interfaces.format import Format, ProfileDocument
from sparsity_search.profiles.budget import Budget
from sparsity_search.profiles.layout import Layout
from sparsity_search.profiles.profile import SparsityProfile, from_counts
from sparsity_search.registry import FORMATS
from tests.helpers.documents import LAYOUT, PROFILE, profiles

NAMES = FORMATS.names()
#: Settings with which a format loses nothing.
EXACT = {"evopress": {"sparsity": 0.5, "step": 1, "max_level": 10**9}}


def exact(name: str) -> Format:
    found: Format = FORMATS.create(name, **EXACT.get(name, {}))
    return found


def halve(profile: SparsityProfile) -> SparsityProfile:
    """Return a profile near another one that every format can hold: half of even counts."""
    units = [u for u in profile.layout if u.count % 2 == 0] or [profile.layout[0]]
    ratios = [profile.sparsities[profile.layout.position(u.name)] for u in units]
    return Budget(0.5).project(Layout(units), np.array(ratios))


HALF = halve(PROFILE)
FEW = halve(from_counts(Layout(LAYOUT[:3]), PROFILE.removed[:3]))


def test_there_are_formats() -> None:
    assert set(NAMES) >= {"profile", "owl", "evopress", "llm_compressor", "csv"}


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15)
@given(profile=profiles())
def test_round_trip(name: str, profile: SparsityProfile) -> None:
    profile = halve(profile) if name == "evopress" else profile
    if name == "evopress" and profile.layout[0].count % 2:
        return
    format_ = exact(name)
    text = format_.write(ProfileDocument(profile))
    assert text.endswith("\n")
    assert format_.read(text, None if format_.sized else profile.layout).profile == profile


@pytest.mark.parametrize("name", ["profile", "csv", "owl"])
@settings(max_examples=15)
@given(profile=profiles(cost=7))
def test_structures_round_trip(name: str, profile: SparsityProfile) -> None:
    format_ = exact(name)
    text = format_.write(ProfileDocument(profile))
    assert format_.read(text, None if format_.sized else profile.layout).profile == profile


@pytest.mark.parametrize("name", [n for n in NAMES if not FORMATS.get(n).sized])
def test_a_format_without_sizes_asks_for_them(name: str) -> None:
    format_ = exact(name)
    with pytest.raises(ConfigError) as refusal:
        format_.read(format_.write(ProfileDocument(HALF)))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", [n for n in NAMES if not FORMATS.get(n).sized])
def test_files_of_other_models_are_refused(name: str) -> None:
    format_ = exact(name)
    text, few = (format_.write(ProfileDocument(profile)) for profile in (HALF, FEW))
    for file, layout in ((text, Layout(LAYOUT[:3])), (few, LAYOUT)):
        with pytest.raises(ProfileError) as refusal:
            format_.read(file, layout)
        assert "model.layers.1" in str(refusal.value)  # a unit of one and not of the other
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20)
@given(
    text=st.text(max_size=200) | st.text(alphabet="{}[]:,\"'-0123456789.e&*!\n ab", max_size=60)
)
def test_nonsense_is_refused_in_one_way(name: str, text: str) -> None:
    with pytest.raises(SparsitySearchError) as refusal:
        exact(name).read(text, LAYOUT)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", NAMES)
def test_the_end_of_a_name_is_claimed_once(name: str) -> None:
    others = {s for n in NAMES if n != name for s in FORMATS.get(n).suffixes}
    assert not others & set(FORMATS.get(name).suffixes)
    assert all(s.startswith(".") and s == s.lower() for s in FORMATS.get(name).suffixes)
