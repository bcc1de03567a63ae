from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from sparsity_search.evidence.statistics import InputStatistics, Statistic
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.io.offload import Offload
from sparsity_search.models.running import gathering
from sparsity_search.models.running import walk as module
from sparsity_search.models.running.runner import BlockRunner
from sparsity_search.models.running.walk import Visit, walk
from sparsity_search.profiles.budget import Budget
from sparsity_search.registry import ALLOCATORS, PRUNERS
from sparsity_search.spaces.files import bounds_of
from sparsity_search.supernet.build import SupernetDesign, build_supernet
from sparsity_search.testing.evaluator import copy_weights, draw_random_tokens
from sparsity_search.testing.models import tiny_llama, tiny_mixtral
from tests.helpers.families import ALL_FAMILIES
from tests.helpers.keeping import keeping, plain, told, visits_of
from tests.helpers.mixtures import unused

Q, K = "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.k_proj"


@pytest.fixture
def tokens() -> Tensor:
    """Nine sequences: one full batch of the block runner, and a smaller one."""
    return draw_random_tokens(9, 12)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Blocks that text is run through, in order; -1 is the embedding."""
    found: list[int] = []

    class Runner(BlockRunner):
        def embed(self) -> Any:
            found.append(-1)
            return super().embed()

        def run(self, block: int, hidden: Any) -> Any:
            found.append(block)
            return super().run(block, hidden)

    monkeypatch.setattr(module, "BlockRunner", Runner)
    return found


@pytest.fixture
def no_text(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return what makes it fail, from then on, to run text in a walk."""

    def fail(*_: object) -> None:
        raise AssertionError("text is run")

    return lambda: monkeypatch.setattr(module, "BlockRunner", fail)


@pytest.fixture
def whole(tmp_path: Path, tokens: Tensor) -> Path:
    """The folder after one walk for norms."""
    visits_of(keeping(tmp_path, tiny_llama()), tokens)
    return tmp_path


def files(folder: Path) -> dict[str, bytes]:
    found = sorted(folder.glob("*/*.safetensors"))
    return {str(file.relative_to(folder)): file.read_bytes() for file in found}


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_reused_is_gathered_to_the_bit(
    family: str, tokens: Tensor, tmp_path: Path, no_text: Callable[[], None]
) -> None:
    subject = keeping(tmp_path, ALL_FAMILIES[family]())
    expected = {s: told(visits_of(plain(subject), tokens, s)) for s in Statistic}
    for statistic, wanted in expected.items():
        assert told(visits_of(subject, tokens, statistic)) == wanted
    no_text()
    for statistic, wanted in expected.items():
        assert told(visits_of(subject, tokens, statistic)) == wanted


@pytest.mark.parametrize("units", ["width", "heads", "sublayers", "blocks", "experts"])
@pytest.mark.parametrize("statistic", list(Statistic))
def test_structures(
    units: str,
    statistic: Statistic,
    tokens: Tensor,
    tmp_path: Path,
    no_text: Callable[[], None],
) -> None:
    model = tiny_mixtral() if units == "experts" else tiny_llama()
    subject = keeping(tmp_path, model, units=units)
    wanted = told(visits_of(plain(subject), tokens, statistic))
    assert told(visits_of(subject, tokens, statistic)) == wanted
    no_text()
    assert told(visits_of(subject, tokens, statistic)) == wanted


def test_notes_are_kept(tmp_path: Path, tokens: Tensor, no_text: Callable[[], None]) -> None:
    model = tiny_mixtral()
    unused(model, [2, 5])
    subject = keeping(tmp_path, model)
    wanted = told(visits_of(subject, tokens))
    assert any("no token is routed to expert 2, 5" in note for note in wanted[1][2])
    no_text()
    assert told(visits_of(subject, tokens)) == wanted


def test_gradients_are_taken_anew(
    whole: Path, tokens: Tensor, no_text: Callable[[], None]
) -> None:
    subject = keeping(whole, tiny_llama())
    wanted = told(visits_of(plain(subject), tokens, gradient=True))
    no_text()
    assert told(visits_of(subject, tokens, gradient=True)) == wanted


def test_what_units_share_is_stored_once_and_shared_again(whole: Path, tokens: Tensor) -> None:
    (file,) = whole.glob("*/block-0001*")
    with safe_open(file, "pt") as stored:
        assert len(stored.keys()) == 2 * 4  # q k v, o, gate up, down
    subject = keeping(whole, tiny_llama())
    for _ in range(2):
        found = visits_of(subject, tokens, Statistic.HESSIAN)[1].statistics
        assert found[Q].inverse_factor(0.01) is found[K].inverse_factor(0.01)


@pytest.mark.parametrize("gone", [{0}, {1}, {2}, {0, 2}, {0, 1, 2}])
@pytest.mark.parametrize("family", ["gemma3", "mixtral", "jamba"])
def test_blocks_that_are_gone_are_gathered_anew(
    family: str, gone: set[int], tokens: Tensor, tmp_path: Path, runs: list[int]
) -> None:
    subject = keeping(tmp_path, ALL_FAMILIES[family]())
    wanted = told(visits_of(subject, tokens, Statistic.HESSIAN))
    before = files(tmp_path)
    for block in gone:
        next(tmp_path.glob(f"*/block-000{block}*")).unlink()
    runs.clear()
    assert told(visits_of(subject, tokens, Statistic.HESSIAN)) == wanted
    assert files(tmp_path) == before
    assert {*runs} == {*range(-1, max(gone) + 1)}  # and no further


def _truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [_truncate, _flip])
@pytest.mark.parametrize("name", ["block-0001.safetensors", "manifest.json"])
def test_what_is_damaged_is_gathered_anew(
    whole: Path, tokens: Tensor, name: str, damage: Callable[[Path], None], runs: list[int]
) -> None:
    subject, before = keeping(whole, tiny_llama()), files(whole)
    damage(next(whole.glob(f"*/{name}")))
    assert told(visits_of(subject, tokens)) == told(visits_of(plain(subject), tokens))
    assert files(whole) == before
    runs.clear()
    visits_of(subject, tokens)
    assert not runs


def _other_model(_: PrunableModel) -> PrunableModel:
    return PrunableModel(tiny_llama(seed=1))


def _other_exclusion(subject: PrunableModel) -> PrunableModel:
    return PrunableModel(subject.model, "q_proj")


def _other_units(subject: PrunableModel) -> PrunableModel:
    return PrunableModel(subject.model, units="width")


def _other_configuration(_: PrunableModel) -> PrunableModel:
    return PrunableModel(tiny_llama(rms_norm_eps=1e-3))


def _other_attention(subject: PrunableModel) -> PrunableModel:
    subject.model.set_attn_implementation("eager")  # type: ignore[operator]
    return subject


def _offloaded(_: PrunableModel) -> PrunableModel:
    model = tiny_llama()
    Offload(model, torch.device("cpu"))
    return PrunableModel(model)


@pytest.mark.parametrize(
    "change",
    [
        *(_other_model, _other_exclusion, _other_units, _other_configuration),
        *(_other_attention, _offloaded),
    ],
)
def test_statistics_of_something_else_are_not_reused(
    whole: Path, tokens: Tensor, change: Callable[[PrunableModel], PrunableModel]
) -> None:
    other = change(keeping(whole, tiny_llama()))
    before, wanted = files(whole), told(visits_of(plain(other), tokens))
    subject = keeping(whole, other.model, exclude=other.exclude, units=other.units)
    assert told(visits_of(subject, tokens)) == wanted
    assert before.items() < files(whole).items()


def test_of_another_text_nor_kind(whole: Path, tokens: Tensor, runs: list[int]) -> None:
    subject = keeping(whole, tiny_llama())
    visits_of(subject, tokens)
    assert not runs
    ways = [(tokens, Statistic.HESSIAN), (tokens[:8], Statistic.NORM)]
    for text, statistic in [*ways, (tokens.view(-1, 6), Statistic.NORM)]:
        runs.clear()
        found = visits_of(subject, text, statistic)
        assert runs
        assert told(found) == told(visits_of(plain(subject), text, statistic))


def test_the_number_of_threads_matters(
    whole: Path, tokens: Tensor, runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    visits_of(keeping(whole, tiny_llama()), tokens)
    assert runs


def test_a_pruned_model_neither_reads_nor_writes(whole: Path, tokens: Tensor) -> None:
    subject, before = keeping(whole, tiny_llama()), files(whole)
    other, dense = plain(subject), told(visits_of(subject, tokens))
    with subject.preserved():
        view = subject.views["model.layers.0.mlp.up_proj"]
        view.write(view.read() * 0)
        found = told(visits_of(subject, tokens))
        assert found == told(visits_of(other, tokens)) != dense
    assert files(whole) == before
    assert told(visits_of(subject, tokens)) == dense


def test_walks_that_rewrite_neither_read_nor_write(
    whole: Path, tokens: Tensor, runs: list[int]
) -> None:
    before = files(whole)
    list(walk(keeping(whole, tiny_llama()), tokens, Statistic.NORM, rewritten=True))
    assert runs == [-1, 0, 0, 1, 1, 2, 2]
    assert files(whole) == before


def test_without_statistics_nothing_is_kept(tmp_path: Path, tokens: Tensor) -> None:
    visits_of(keeping(tmp_path, tiny_llama()), tokens, Statistic.NONE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stop", [1, 2])
def test_an_interrupted_walk_leaves_whole_blocks_and_goes_on(
    tmp_path: Path, tokens: Tensor, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = keeping(tmp_path, tiny_llama())
    walking = walk(subject, tokens, Statistic.HESSIAN, rewritten=False)
    for _ in range(stop):
        next(walking)
    walking.close()
    before = files(tmp_path)
    assert len(before) == stop
    gathered: list[str] = []
    inner = gathering.Gatherer._join

    def join(self: Any, name: str, inputs: Tensor) -> None:
        gathered.append(name)
        inner(self, name, inputs)

    monkeypatch.setattr(gathering.Gatherer, "_join", join)
    found = told(visits_of(subject, tokens, Statistic.HESSIAN))
    assert len(gathered) == 7 * (3 - stop)
    assert before.items() < files(tmp_path).items()
    assert len(files(tmp_path)) == 3
    assert found == told(visits_of(plain(subject), tokens, Statistic.HESSIAN))


def test_a_block_that_is_not_saved_leaves_nothing(
    tmp_path: Path, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: InputStatistics) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(InputStatistics, "tensors", interrupt)
        with pytest.raises(KeyboardInterrupt):
            visits_of(keeping(tmp_path, tiny_llama()), tokens)
    assert not files(tmp_path)
    subject = keeping(tmp_path, tiny_llama())
    assert told(visits_of(subject, tokens)) == told(visits_of(plain(subject), tokens))


def test_later_blocks_do_not_see_what_is_done_to_known_ones(whole: Path, tokens: Tensor) -> None:
    subject = keeping(whole, tiny_llama())
    wanted = told(visits_of(subject, tokens))
    next(whole.glob("*/block-0002*")).unlink()
    found = []
    with subject.preserved():
        for visit in walk(subject, tokens, Statistic.NORM, rewritten=False):
            found.append(visit)
            for unit in visit.units:
                subject.views[unit.name].write(subject.views[unit.name].read() * 0)
    assert told(found) == wanted


def test_two_at_once_leave_one_whole_folder(
    tmp_path: Path, tokens: Tensor, no_text: Callable[[], None]
) -> None:
    walks: list[Iterator[Visit]] = [
        walk(keeping(tmp_path, tiny_llama()), tokens, Statistic.NORM, rewritten=False)
        for _ in range(2)
    ]
    found = [list(pair) for pair in zip(*walks, strict=True)]
    assert told([one for one, _ in found]) == told([other for _, other in found])
    no_text()
    again = visits_of(keeping(tmp_path, tiny_llama()), tokens)
    assert told(again) == told([one for one, _ in found])


def test_blocks_without_units(tmp_path: Path, tokens: Tensor, runs: list[int]) -> None:
    subject = keeping(tmp_path, tiny_llama(), exclude=r"layers\.1\.")
    wanted = told(visits_of(subject, tokens))
    runs.clear()
    assert told(visits_of(subject, tokens)) == wanted
    assert not runs


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, tokens: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    subject = keeping(tmp_path / "file", tiny_llama())
    assert told(visits_of(subject, tokens)) == told(visits_of(plain(subject), tokens))
    assert caplog.text.count("cannot store statistics in") == 3


@pytest.mark.parametrize("name", ["owl", "dlp", "mrp", "essential", "knapsack"])
def test_allocators_find_the_same(name: str, tmp_path: Path, tokens: Tensor) -> None:
    subject, allocator = keeping(tmp_path, tiny_llama()), ALLOCATORS.create(name)
    budget, limits = Budget(0.6), bounds_of(subject.layout, {})
    wanted = allocator.allocate(plain(subject), tokens, budget, limits)
    for _ in range(2):
        assert allocator.allocate(subject, tokens, budget, limits) == wanted


@pytest.mark.parametrize("pruner", ["wanda", "sparsegpt"])
def test_supernets_on_dense_inputs(
    pruner: str, tmp_path: Path, tokens: Tensor, no_text: Callable[[], None]
) -> None:
    subject = keeping(tmp_path, tiny_llama())
    profile = Budget(0.6).uniform(subject.layout)
    tables = [(0, count) for count in profile.removed]
    plan = SupernetDesign(
        pruner=PRUNERS.create(pruner), tables=tables, centre=profile, propagate="dense"
    )
    found = []
    for of in (plain(subject), subject, subject):
        with build_supernet(of, tokens, plan).resident() as switch:
            switch.to(profile)
            found.append(copy_weights(subject.model))
        if len(found) == 2:
            no_text()
    for made in found[1:]:
        assert all(torch.equal(made[name], weight) for name, weight in found[0].items())
