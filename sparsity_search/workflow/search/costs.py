"""What the steps of a plan take on this machine, from short samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sparsity_search.config.schema import RunConfig
from sparsity_search.engine.estimate import (
    SearchEstimate,
    SupernetEstimate,
    draw_tokens,
    estimate,
    estimate_supernet,
    time_model,
    time_rebuild,
)
from sparsity_search.engine.job import SearchJob
from sparsity_search.engine.plugins import Plugins, build_final
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.plans.methods import MachineSpeed, load_methods
from sparsity_search.plans.plan import Plan, PlanStep
from sparsity_search.plans.schedule import Schedule, plan_steps
from sparsity_search.pruning.patterns import groups_of
from sparsity_search.workflow.search.building import build_step_allocator, configure_study
from sparsity_search.workflow.search.clock import Clock

#: Scores of a candidate and its perplexity share the passes; both take this much more than one.
_BOTH = 1.1
#: Bytes that a disk takes in a second, on the safe side.
_DISK = 2e8
#: Fewest rounds for which a supernet is built: a study of fewer has found nothing that is kept.
_ROUNDS = 20
#: Passes of the text of gradients for a hint.
_HINT_PASSES = 6


@dataclass
class StepCosts:
    """Seconds that steps take.

    Attributes:
        job: The search.
        study: Configuration of the plan's study, or of the search if it has none.
        machine: How fast the model runs.
        search: Estimate of a study.
        rebuilds: To prune the model to a profile, by name of the pruner; ``""`` is the plan's.
        supernets: Supernets that allocators build on disk, by `PlanStep.allocation`: those with a
            pruner that updates weights. Others cost little more than their passes.
        pace: Time of the candidates so far, as a multiple of what the samples gave.
    """

    job: SearchJob
    study: RunConfig
    machine: MachineSpeed
    search: SearchEstimate
    rebuilds: Mapping[str, float]
    supernets: Mapping[str, SupernetEstimate]
    pace: float = 1.0

    @classmethod
    def measure(cls, job: SearchJob, plan: Plan) -> StepCosts:
        """Time samples on this machine.

        Args:
            job: The search.
            plan: Its plan.
        """
        session, config, pruner = job.session, job.config, job.plugins.pruner
        studies = [step.search for step in plan.steps if step.search is not None]
        study = configure_study(config, studies[0] if studies else {})
        model = session.loaded.model
        pruners = {"": job.plugins.final}
        for step in plan.steps:
            if step.rebuild is not None:
                pruners[step.rebuild.name] = build_final(config, pruner, step.rebuild)
        with job.monitor.step("time samples"):
            tokens = draw_tokens(session, config.data.search_length)
            proxy = job.plugins.evaluator.bind(model, tokens, session.loaded.tokenizer)
            return cls(
                job,
                study,
                time_model(session, config.data.calibration_length),
                estimate(session, study, Plugins.of(study).pruner, proxy, job.space),
                {
                    name: time_rebuild(session, own, job.space.base, config)
                    for name, own in pruners.items()
                },
                {
                    allocation: estimate_supernet(session, own, levels, config)
                    for allocation, own, levels in _list_supernets(config, plan)
                },
            )

    def judge(self, pruner: str = "") -> float:
        """To prune the model to a candidate, and to score it on the final text."""
        return self.pace * self._sample(pruner)

    def observe(self, seconds: float, pruner: str = "") -> None:
        """Learn from the time that a candidate took to be judged."""
        self.pace = seconds / self._sample(pruner)

    @property
    def memory(self) -> int:
        """Bytes of a search, without a forward pass and the libraries."""
        return max(self.search.build_bytes, self.search.search_bytes)

    @property
    def save(self) -> float:
        """To write the checkpoint and the report."""
        return 4.0 + self.search.checkpoint_bytes / _DISK

    def allocate(self, step: PlanStep) -> float:
        """To allocate a profile and judge it; an allocator without known cost counts as free."""
        found = [method for method in load_methods() if method.allocator == step.allocate]
        seconds = sum(method.seconds(self.machine, self.job.config) for method in found[:1])
        return self._slow_down(seconds + self._get_supernet(step).seconds) + self.judge()

    def copies(self, step: PlanStep) -> int:
        """Bytes for temporary files that an allocation needs."""
        return self._get_supernet(step).n_bytes

    def prepare_search(self) -> float:
        """To build a supernet, and to measure a hint."""
        tokens = self.study.data.search_sequences * self.study.data.search_length
        hint = _HINT_PASSES * tokens * self.machine.seconds_per_token
        return self._slow_down(self.search.supernet_seconds + hint)

    def begin_search(self) -> float:
        """To prepare a study, to run the fewest rounds that may pay, and to judge the result."""
        rounds = self._slow_down(_ROUNDS * self.search.round_seconds)
        return self.prepare_search() + rounds + self.judge()

    def _get_supernet(self, step: PlanStep) -> SupernetEstimate:
        return self.supernets.get(step.allocation, SupernetEstimate())

    def _slow_down(self, seconds: float) -> float:
        """Return a time for a machine that has become slower than its samples."""
        return max(1.0, self.pace) * seconds

    def _sample(self, pruner: str) -> float:
        tokens, seconds = next(iter(self.search.evaluation_seconds.items()))
        score = _BOTH * seconds * self.job.session.text["final"].numel() / tokens
        return self.rebuilds[pruner] + score


def _list_supernets(config: RunConfig, plan: Plan) -> Iterator[tuple[str, Pruner, int]]:
    """Yield allocations that make copies of the weights, the pruner, and how many copies."""
    for step in plan.steps:
        found = None if step.allocate is None else build_step_allocator(config, step).supernet
        if found is not None and found[0].updates and groups_of(found[0]) is None:
            yield step.allocation, *found


def describe_schedule(job: SearchJob, plan: Plan, costs: StepCosts, clock: Clock) -> Schedule:
    """Return what a search will do in the time that is left, with its text, memory and disk."""
    data, search, config = job.config.data, costs.search, job.config
    sources = dict.fromkeys((data.calibration, data.search_text, data.final_text))
    on_disk = search.supernet_bytes if costs.study.supernet.store == "disk" else 0
    meanwhile = max((supernet.n_bytes for supernet in costs.supernets.values()), default=0)
    return Schedule(
        steps=plan_steps(plan, costs, clock.left, clock.grace),
        pruner=(config.finalise or config.pruner).name,
        text=", ".join(source for source in sources if source),
        memory=costs.memory,
        disk=search.checkpoint_bytes + search.file_bytes + on_disk + meanwhile,
        spent=clock.elapsed,
    )
