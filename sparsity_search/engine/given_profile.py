"""An existing profile, as a start for a search or a row of a comparison."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sparsity_search.errors import told_of
from sparsity_search.interfaces.allocator import Allocation, AllocationProblem, Allocator
from sparsity_search.interfaces.units import ALL_UNITS
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.profiles.transfer import transfer
from sparsity_search.registry import FORMATS
from sparsity_search.utils.reading import read_text


@dataclass(frozen=True, kw_only=True, repr=False)
class GivenProfile(Allocator):
    """The profile in a file, transferred to the model's units and the budget.

    Args:
        profile: The profile in the file.
    """

    units: ClassVar[tuple[str, ...]] = ALL_UNITS

    profile: SparsityProfile

    @classmethod
    def read(cls, path: Path) -> GivenProfile:
        """Return the profile in a ``profile.json``.

        Raises:
            ConfigError: The file cannot be read.
            ProfileError: The file holds no profile, or is damaged.
        """
        text = read_text(path)
        with told_of(path):
            found: SparsityProfile = FORMATS.create("profile").read(text).profile
        return cls(profile=found)

    def propose(self, problem: AllocationProblem) -> Allocation:
        """Return the profile; equal units keep its shape, others get it by relative depth."""
        moved = transfer(self.profile, problem.layout, problem.budget, problem.bounds)
        return Allocation(moved)

    def __repr__(self) -> str:
        return f"GivenProfile({self.profile.digest})"
