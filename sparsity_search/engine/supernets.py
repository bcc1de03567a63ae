"""The supernet of a stage: the profile that it is built around, and its storage."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsity_search.engine.job import SearchJob
from sparsity_search.errors import RunMismatchError
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.spaces.levels import SearchSpace
from sparsity_search.supernet.build import SupernetDesign, build_supernet
from sparsity_search.supernet.disk import SupernetFolder, lock_shared_folder
from sparsity_search.supernet.switch import Supernet

#: Keys of a study's fingerprint that its supernet depends on, besides the model's identity.
_KEYS = (
    *("space", "text.calibration", "pruner", "propagate", "refresh"),
    *("seed", "dtype", "device", "threads"),
)


@dataclass(frozen=True)
class StageSupernet:
    """The supernet of one stage, built or not.

    Attributes:
        job: The search.
        space: Space of the stage.
        stage: Number of the stage, from 1.
        centre: The profile whose outputs are the inputs of later blocks while the supernet is
            built. Near it, a supernet gives the scores of sequential pruning.
        fingerprint: Fingerprint of the stage's study.
    """

    job: SearchJob
    space: SearchSpace
    stage: int
    centre: SparsityProfile
    fingerprint: Mapping[str, Any]

    def build(self) -> Supernet:
        """Return the supernet; stored blocks are read, others are built."""
        job, settings = self.job, self.job.config.supernet
        design = SupernetDesign(
            pruner=job.plugins.pruner,
            tables=self.space.tables(),
            patterns=self.space.patterns(),
            centre=self.centre,
            propagate="centre" if settings.propagate == "start" else settings.propagate,
            refresh=job.config.data.refresh,
            seed=job.config.study.seed,
        )
        subject, text = job.session.subject, job.session.text["calibration"]
        with (
            self._open_folder() as folder,
            job.monitor.step("build supernet", len(subject.blocks)) as advance,
        ):
            return build_supernet(subject, text, design, folder, advance)

    def is_kept(self) -> bool:
        """Return whether the whole supernet is on disk, so that other workers can read it."""
        with self._open_folder() as folder:
            return folder is not None and folder.complete(len(self.job.session.subject.blocks))

    def _open_folder(self) -> AbstractContextManager[SupernetFolder | None]:
        """Return the folder of the supernet; None if it stays in memory."""
        keys = (*self.job.session.loaded.identity, *_KEYS)
        facts = {**{key: self.fingerprint[key] for key in keys}, "centre": self.centre.digest}
        settings = self.job.config.supernet
        if settings.cache is not None:
            return lock_shared_folder(Path(settings.cache), facts)
        on_disk = settings.store == "disk" or self.job.claims is not None  # for all workers
        return nullcontext(self._own_folder(facts) if on_disk else None)

    def _own_folder(self, facts: Mapping[str, Any]) -> SupernetFolder:
        """Return the folder in the run directory; a later stage may replace an older supernet."""
        path = self.job.directory.supernet_folder(self.stage)
        try:
            return SupernetFolder(path, facts)
        except RunMismatchError:
            if self.stage == 1:
                raise
            shutil.rmtree(path)  # more rounds have changed the result of the stage before
            return SupernetFolder(path, facts)
