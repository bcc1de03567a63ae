from __future__ import annotations

import filecmp
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sparsity_search.models.io import converted, loading
from sparsity_search.models.io.loading import LoadedModel, load_model
from sparsity_search.models.io.saving import save_checkpoint
from sparsity_search.testing.models import tiny_tokenizer
from sparsity_search.utils.cache import get_cache_folder
from sparsity_search.utils.files import atomic_folder
from tests.models.io.gguf_files import TEMPLATE, write_tiny_gguf

TEXT = "the model <eos>\n\n1 + 1 = {2}; <spare3> thethe\t~ ÿ"


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the files that were converted so far, each of which is checked once."""
    done: list[Path] = []
    check = loading.check_gguf

    def count(path: Path, model: torch.nn.Module) -> None:
        done.append(path)
        check(path, model)

    monkeypatch.setattr(loading, "check_gguf", count)
    return done


def load(path: Path, dtype: str = "float32", **options: bool) -> LoadedModel:
    return load_model(str(path), dtype=dtype, device="cpu", **options)


def find_kept() -> list[Path]:
    return [path.parent for path in (get_cache_folder() / "gguf").glob("*/manifest.json")]


def state(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    return loaded.model.state_dict()


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", "float16"])
def test_the_kept_model_is_the_converted_one(
    tmp_path: Path, gguf: Path, conversions: list[Path], dtype: str
) -> None:
    first, second = load(gguf, dtype), load(gguf, dtype)
    assert conversions == [gguf]
    assert state(first).keys() == state(second).keys()
    for name, tensor in state(first).items():
        assert tensor.dtype == state(second)[name].dtype
        assert torch.equal(tensor, state(second)[name])
    assert first.identity == second.identity
    assert (first.source, first.saved_as) == (second.source, second.saved_as)
    assert first.model.generation_config == second.model.generation_config
    assert first.tokenizer(TEXT) == second.tokenizer(TEXT)
    assert first.tokenizer.chat_template == second.tokenizer.chat_template == TEMPLATE
    for name, loaded in {"first": first, "second": second}.items():
        save_checkpoint(loaded.model, loaded.tokenizer, tmp_path / name, base=loaded)
    names = [path.name for path in (tmp_path / "first").iterdir()]
    assert "model.safetensors" in names
    assert filecmp.cmpfiles(tmp_path / "first", tmp_path / "second", names, shallow=False)[0] == (
        names
    )


def test_number_types_are_kept_apart(gguf: Path, conversions: list[Path]) -> None:
    narrow, wide = load(gguf, "float16"), load(gguf, "float32")
    assert conversions == [gguf, gguf]
    assert wide.model.dtype == torch.float32
    assert any(not torch.equal(state(narrow)[name].float(), t) for name, t in state(wide).items())


def test_offloaded_weights_are_those_of_the_file(gguf: Path, conversions: list[Path]) -> None:
    first, second = load(gguf, offload=True), load(gguf, offload=True)
    assert conversions == [gguf]
    assert first.identity == second.identity == load(gguf).identity


def test_another_file_of_the_same_name_is_converted(gguf: Path, conversions: list[Path]) -> None:
    first = load(gguf)
    write_tiny_gguf(gguf, seed=1)
    second = load(gguf)
    assert conversions == [gguf, gguf]
    assert first.digest != second.digest
    shutil.move(gguf, gguf.with_name("renamed.gguf"))
    assert load(gguf.with_name("renamed.gguf")).digest == second.digest
    assert len(conversions) == 2


def test_a_tokenizer_beside_the_file_counts(gguf: Path, conversions: list[Path]) -> None:
    first = load(gguf)
    tiny_tokenizer().save_pretrained(gguf.parent)
    assert load(gguf).identity == load(gguf).identity != first.identity
    assert len(conversions) == 2


def test_other_versions_convert_anew(
    gguf: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    load(gguf)
    monkeypatch.setattr(converted, "version", {"gguf": "0.0"}.get)
    load(gguf)
    assert len(conversions) == 2


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", truncate),
        ("model.safetensors", flip),
        ("manifest.json", truncate),
        ("chat_template.jinja", Path.unlink),
    ],
)
def test_a_damaged_model_is_converted_anew(
    gguf: Path,
    conversions: list[Path],
    caplog: pytest.LogCaptureFixture,
    name: str,
    damage: Callable[[Path], None],
) -> None:
    first = load(gguf)
    (folder,) = find_kept()
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    damage(folder / name)
    assert load(gguf).identity == first.identity
    assert len(conversions) == 2
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == whole
    assert load(gguf).tokenizer.chat_template == TEMPLATE
    assert len(conversions) == 2
    assert not caplog.records


def test_a_model_that_vanishes_while_it_is_read_is_converted_anew(
    gguf: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    load(gguf)
    find = converted.ConvertedModel.find

    def find_and_remove(self: converted.ConvertedModel) -> Path | None:
        folder = find(self)
        assert folder is not None
        shutil.rmtree(folder)
        return folder

    monkeypatch.setattr(converted.ConvertedModel, "find", find_and_remove)
    load(gguf)
    assert len(conversions) == 2


def test_a_cache_that_cannot_be_written_is_one_line(
    gguf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    kept = load(gguf).identity
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPARSITY_SEARCH_CACHE", str(tmp_path / "file"))
    assert load(gguf).identity == kept
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(tmp_path / "file") in record.getMessage()
    assert "\n" not in record.getMessage()


def test_a_full_disk_leaves_nothing(
    gguf: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fill(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(converted, "check_nothing_is_lost", fill)
    load(gguf)
    assert "No space left on device" in caplog.text
    assert list((get_cache_folder() / "gguf").iterdir()) == []


def test_what_would_change_is_not_kept(
    gguf: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Forgetful:
        @staticmethod
        def from_pretrained(folder: Path):
            tokenizer = loading.AutoTokenizer.from_pretrained(folder)
            tokenizer.chat_template = None
            return tokenizer

    monkeypatch.setattr(converted, "AutoTokenizer", Forgetful)
    load(gguf)
    assert "its tokenizer changes" in caplog.text
    assert find_kept() == []


def test_another_process_that_keeps_the_same_model_is_let_be(
    gguf: Path, conversions: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    first = load(gguf)
    (folder,) = find_kept()
    with atomic_folder(folder) as other:
        shutil.copytree(folder, other, dirs_exist_ok=True)
        shutil.rmtree(folder)
        assert load(gguf).identity == first.identity
        assert find_kept() == [other]
    assert find_kept() == [folder]
    assert load(gguf).identity == first.identity
    assert len(conversions) == 2
    assert not caplog.records


@pytest.mark.real_model
def test_the_second_load_of_smollm2_is_the_first(
    conversions: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSITY_SEARCH_CACHE", str(tmp_path))
    first, second = (load_model("smollm2", device="cpu") for _ in range(2))
    assert len(conversions) == 1
    assert first.identity == second.identity
    text = f"{converted.__doc__}<|im_start|>user\n{converted.__doc__ * 20}<|im_end|>"
    assert first.tokenizer(text) == second.tokenizer(text)
