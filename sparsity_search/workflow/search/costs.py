"""What the steps of a plan take on this machine, from short samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sparsity_search.engine.estimate import time_model, time_rebuild
from sparsity_search.engine.job import SearchJob
from sparsity_search.engine.plugins import build_factory
from sparsity_search.plans.methods import MachineSpeed, load_methods
from sparsity_search.plans.plan import Plan, PlanStep
from sparsity_search.registry import PRUNERS

#: Passes of the final text to score a candidate: the model, and logits that are a good half of it.
_SCORE_PASSES = 1.6
#: Bytes that a disk takes in a second, on the safe side.
_DISK = 2e8


@dataclass(frozen=True)
class StepCosts:
    """Seconds that steps take.

    Attributes:
        job: The search.
        machine: How fast the model runs.
        rebuilds: To prune the model to a profile, by pruner; the plan's own is ``""``.
    """

    job: SearchJob
    machine: MachineSpeed
    rebuilds: Mapping[str, float]

    @classmethod
    def measure(cls, job: SearchJob, plan: Plan) -> StepCosts:
        """Time samples on this machine.

        Args:
            job: The search.
            plan: Its plan.
        """
        build = build_factory(job.config)
        last = {step.finalise for step in plan.steps if step.finalise is not None}
        pruners = {"": job.plugins.final}
        pruners |= {name: build.resolve(PRUNERS, name) for name in sorted(last)}
        with job.monitor.step("time the model"):
            return cls(
                job,
                time_model(job.session, job.config.data.calibration_length),
                {
                    name: time_rebuild(job.session, pruner, job.space.base, job.config)
                    for name, pruner in pruners.items()
                },
            )

    @property
    def score(self) -> float:
        """To score a candidate on the final text."""
        n_tokens = self.job.session.text["final"].numel()
        return _SCORE_PASSES * n_tokens * self.machine.seconds_per_token

    @property
    def rebuild(self) -> float:
        """To prune the model to a candidate with the plan's pruner, and to score it."""
        return self.rebuilds[""] + self.score

    @property
    def save(self) -> float:
        """To write the checkpoint and the report."""
        parameters = self.job.session.loaded.model.parameters()
        n_bytes: int = sum(p.numel() * p.element_size() for p in parameters)
        return 2.0 + n_bytes / _DISK

    def finalise(self, pruner: str) -> float:
        """To rebuild and score two profiles with a pruner."""
        return 2 * (self.rebuilds[pruner] + self.score)

    def allocate(self, step: PlanStep) -> float:
        """To allocate a profile and judge it; an allocator without known cost counts as free."""
        found = [method for method in load_methods() if method.allocator == step.allocate]
        seconds = sum(method.seconds(self.machine, self.job.config) for method in found[:1])
        return seconds + self.rebuild
