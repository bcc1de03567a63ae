"""Checking the zeros of a checkpoint against a profile."""

from __future__ import annotations

from pathlib import Path

from sparsity_search.config.schema import RunConfig
from sparsity_search.engine.monitor import Monitor
from sparsity_search.engine.session import open_session
from sparsity_search.profiles.profile import PROFILE_JSON, SparsityProfile


def verify(config: RunConfig, profile: Path, *, monitor: Monitor | None = None) -> SparsityProfile:
    """Check that a checkpoint's zeros are exactly those of a profile, and return that.

    Args:
        config: The checkpoint.
        profile: The profile's file.
        monitor: Watches the job.

    Raises:
        ProfileError: They are not, or the profile is corrupt or of another model.
    """
    stored = PROFILE_JSON.read(profile)
    kind = stored.get("removes")
    subject = open_session(config.model, [], 0, monitor or Monitor(), units=kind).subject
    expected = SparsityProfile.from_json(subject.layout, stored)
    subject.verify(expected)
    return expected
