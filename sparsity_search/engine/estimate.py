"""An estimate of a search's time and memory on this machine, from short samples of its parts."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparsity_search.config.schema import RunConfig
from sparsity_search.engine.session import Session, cap_length
from sparsity_search.interfaces.evaluator import Proxy
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.models.running.gradients import compute_weight_gradients
from sparsity_search.models.running.head import compute_last_hidden
from sparsity_search.models.running.runner import compute_batch_size
from sparsity_search.models.running.walk import Visit
from sparsity_search.plans.methods import MachineSpeed
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.pruning.walk import walk_for
from sparsity_search.spaces.levels import SearchSpace
from sparsity_search.supernet.build import split_by_pattern

#: Working memory in bytes for each weight of a pruned unit: scores, their order, copies of both.
_WORK = 32
#: Timed passes; the quickest one counts, since other work on the machine only slows them.
_REPEATS = 3


@dataclass(frozen=True)
class SearchEstimate:
    """Time and memory that a search needs on this machine.

    Attributes:
        evaluation_seconds: Time of one evaluation at each rung, by its tokens.
        round_seconds: Greatest time of one round of the ladder.
        supernet_seconds: Time to build the supernet.
        supernet_bytes: Size of the supernet, in memory or on disk.
        build_bytes: Memory while the supernet is built, without that of the libraries.
        search_bytes: Memory of the model, the dense copy of the prunable weights, the supernet
            and the shared prefixes in the search, without that of a forward pass.
        file_bytes: Size of offloaded weights in the folder for temporary files.
        checkpoint_bytes: Size of the pruned checkpoint on disk.
    """

    evaluation_seconds: dict[int, float]
    round_seconds: float
    supernet_seconds: float
    supernet_bytes: int
    build_bytes: int
    search_bytes: int
    file_bytes: int
    checkpoint_bytes: int


class SupernetEstimate(NamedTuple):
    """Seconds to build a supernet, and the bytes of its variants."""

    seconds: float = 0.0
    n_bytes: int = 0


@dataclass(frozen=True)
class _Sample:
    """Time and memory of the first block of a supernet.

    Attributes:
        seconds: Time to build the whole supernet, extrapolated.
        variants: Bytes of the block's variants.
        statistics: Bytes of its input statistics.
        largest: Bytes of the largest input's statistics.
        activations: Bytes of its modules' outputs for one batch.
        kept: Bytes of the dense model's inputs of the block, for pruners that need them.
    """

    seconds: float
    variants: int
    statistics: int
    largest: int
    activations: int
    kept: int


def estimate(
    session: Session, config: RunConfig, pruner: Pruner, proxy: Proxy, space: SearchSpace
) -> SearchEstimate:
    """Time samples of a search's parts, and add up its memory.

    Args:
        session: The model; its text is not used.
        config: Configuration of the search.
        pruner: Pruner that makes the supernet.
        proxy: Proxy that scores candidates, bound to one sequence of the search's length.
        space: The search space.
    """
    sequence = _time_score(proxy, session)
    ladder = config.ladder
    length = cap_length(config.data.search_length, session.loaded)
    rungs = [rung for generation in ladder.generations for rung in generation.rungs]
    most = max(generation.round_tokens for generation in ladder.generations)
    sample = _sample_block(session, pruner, space.tables(), space.patterns(), config)
    supernet = sample.variants * len(session.subject.blocks)
    dense = sum(view.read().nbytes for _, view in session.subject.one_by_one())
    in_memory = supernet if config.supernet.store == "memory" else 0
    offloaded = session.subject.offload is not None
    return SearchEstimate(
        evaluation_seconds={rung.tokens: sequence * rung.tokens / length for rung in rungs},
        round_seconds=sequence * most / length,
        supernet_seconds=sample.seconds,
        supernet_bytes=supernet,
        build_bytes=_sum_weights(session, dense)
        + in_memory
        + _estimate_work(session, config, sample),
        search_bytes=_sum_weights(session, dense)
        + in_memory
        + _estimate_prefixes(session, config),
        file_bytes=_count_bytes(session.subject.blocks) + dense if offloaded else 0,
        checkpoint_bytes=session.loaded.model.num_parameters() * session.loaded.saved_as.itemsize,
    )


def time_model(session: Session, length: int) -> MachineSpeed:
    """Return how fast a model runs on one sequence of random tokens."""
    model = session.loaded.model
    tokens, spent = draw_tokens(session, length), []
    with torch.inference_mode():
        compute_last_hidden(model, tokens)  # warms up
        for _ in range(_REPEATS):
            started = time.monotonic()
            compute_last_hidden(model, tokens).sum().item()  # waits for the device
            spent.append(time.monotonic() - started)
    return MachineSpeed(min(spent) / tokens.numel(), session.subject.layout.n_weights)


def time_rebuild(
    session: Session, pruner: Pruner, profile: SparsityProfile, config: RunConfig
) -> float:
    """Return the seconds to prune the model to a profile, from a sample of its first block."""
    tables = [(count,) for count in profile.removed]
    patterns = [(pattern,) if pattern else () for _, pattern in profile.states]
    return _sample_block(session, pruner, tables, patterns, config).seconds


def estimate_supernet(
    session: Session, pruner: Pruner, n_levels: int, config: RunConfig
) -> SupernetEstimate:
    """Return time and size of a supernet of evenly spaced levels, from a sample of its start."""
    shares = [level / (n_levels + 1) for level in range(1, n_levels + 1)]
    tables = [
        tuple(sorted({round(share * unit.count) for share in shares}))
        for unit in session.subject.layout
    ]
    sample = _sample_block(session, pruner, tables, [()] * len(tables), config)
    return SupernetEstimate(sample.seconds, sample.variants * len(session.subject.blocks))


def draw_tokens(session: Session, length: int) -> Tensor:
    """Return one sequence of random tokens, at most as long as the model's context.

    Random tokens take as long as real text.
    """
    length = cap_length(length, session.loaded)
    vocabulary = session.loaded.model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (1, length), generator=generator)


def _sum_weights(session: Session, dense: int) -> int:
    """Return the bytes of weights in memory at once, including the dense copies."""
    model, blocks = session.loaded.model, session.subject.blocks
    if session.subject.offload is None:
        return _count_bytes(model) + dense
    return _count_bytes(model) - _count_bytes(blocks) + 2 * max(map(_count_bytes, blocks))


def _estimate_work(session: Session, config: RunConfig, sample: _Sample) -> int:
    """Return the bytes that building a supernet needs in addition to the weights.

    They are the statistics of two blocks, and for one block the outputs of its modules, its
    variants twice (in memory and while they are written), the work on its largest unit and the
    dense model's inputs, if they are needed.
    """
    data = config.data
    hidden = 2 * data.calibration_sequences * data.calibration_length * _get_width(session)
    unit = _WORK * int(session.subject.layout.counts.max()) + 3 * sample.largest
    work = hidden + 2 * sample.statistics + 2 * sample.variants + unit
    return work + sample.activations + sample.kept


def _estimate_prefixes(session: Session, config: RunConfig) -> int:
    """Return the bytes of all blocks' outputs for the top rung's tokens, at most their limit."""
    tokens = config.ladder.rungs[-1].tokens
    whole = len(session.subject.blocks) * tokens * _get_width(session)
    return min(whole, config.supernet.prefix_mib * 2**20)


def _get_width(session: Session) -> int:
    """Return the bytes of one position's hidden state."""
    model = session.loaded.model
    width: int = model.config.get_text_config().hidden_size * model.dtype.itemsize
    return width


def _count_bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def _time_score(proxy: Proxy, session: Session) -> float:
    """Return the seconds to score one sequence, after a warm-up."""
    proxy.score(session.loaded.model, [0])
    started = time.monotonic()
    proxy.score(session.loaded.model, [0])
    return time.monotonic() - started


@torch.inference_mode()
def _time_pass(session: Session, tokens: Tensor) -> float:
    """Return the seconds of a pass through all blocks."""
    started = time.monotonic()
    compute_last_hidden(session.loaded.model, tokens)
    return time.monotonic() - started


def _sample_block(
    session: Session,
    pruner: Pruner,
    tables: Sequence[tuple[int, ...]],
    patterns: Sequence[tuple[str, ...]],
    config: RunConfig,
) -> _Sample:
    """Build the first block of a supernet from one sequence."""
    subject, data = session.subject, config.data
    tokens = draw_tokens(session, data.calibration_length)
    with _count_outputs(subject.blocks[0]) as outputs:
        whole = _time_pass(session, tokens) / len(subject.blocks)
    started = time.monotonic()
    if pruner.needs_gradient:
        compute_weight_gradients(subject, tokens)
    gradients = time.monotonic() - started
    # as of blocks that are rewritten, whose statistics no cache keeps
    visits = walk_for(pruner, subject, tokens, rewritten=True, refresh=data.refresh)
    walked, pruned, size, distinct = -gradients, 0.0, 0, []
    for visit, seconds in _take_block(visits):
        walked += seconds
        distinct += list({id(s): s for s in visit.statistics.values()}.values())
        started = time.monotonic()
        for unit in visit.units:
            position = subject.layout.position(unit.name)
            weight = subject.views[unit.name].read()
            for by, counts in split_by_pattern(
                pruner, unit, tables[position], patterns[position]
            ).values():
                variants = by.prune(weight, visit.evidence[unit.name], counts, seed=0).packed()
                size += sum(t.nbytes for t in variants.tensors().values())
        pruned += time.monotonic() - started
    # a block runs once more when it is pruned; one sequence alone shows what is a layer's part
    once = whole if data.refresh == "layer" else 0.0
    passes = max(whole, walked + whole - once) * data.calibration_sequences + once
    known, width = [s.n_bytes for s in distinct], sum(s.n_inputs for s in distinct)
    text = tokens.numel() * data.calibration_sequences
    beside = pruner.needs_dense_inputs and data.refresh == "layer"
    kept = width * text * session.loaded.model.dtype.itemsize if beside else 0
    batch = compute_batch_size(next(subject.model.parameters()).device, data.calibration_length)
    activations = sum(outputs) * min(batch, data.calibration_sequences)
    seconds = (pruned + passes) * len(subject.blocks) + gradients * data.calibration_sequences
    return _Sample(seconds, size, sum(known), max(known, default=0), activations, kept)


def _take_block(visits: Generator[Visit, None, None]) -> Iterator[tuple[Visit, float]]:
    """Yield the visits of the first block, each with its seconds."""
    while True:
        started = time.monotonic()
        visit = next(visits)
        yield visit, time.monotonic() - started
        if visit.last:
            visits.close()
            return


@contextmanager
def _count_outputs(block: nn.Module) -> Iterator[list[int]]:
    """Yield a list that collects the bytes of each output tensor of a block's modules."""
    sizes: list[int] = []

    def count(_: nn.Module, __: object, output: object) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.nbytes)

    handles = [module.register_forward_hook(count) for module in block.modules()]
    try:
        yield sizes
    finally:
        for handle in handles:
            handle.remove()
