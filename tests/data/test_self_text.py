from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from sparsity_search.data import self_text
from sparsity_search.data.self_text import (
    find_first_tokens,
    sample_cached_text,
    sample_text,
)
from sparsity_search.errors import DataError
from sparsity_search.models.io.identity import identify
from sparsity_search.models.io.loading import LoadedModel
from sparsity_search.testing.models import tiny_llama, tiny_loaded, tiny_tokenizer

#: The same weights compute otherwise.
OTHER = {"rms_norm_eps": 0.1}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARSITY_SEARCH_CACHE", str(tmp_path))
    return tmp_path / "self_text"


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded()


def sample(loaded: LoadedModel, n: int = 3, length: int = 12, seed: int = 0) -> torch.Tensor:
    model, tokenizer = loaded.model, loaded.tokenizer
    return sample_text(model, tokenizer, n_sequences=n, length=length, seed=seed)


def test_shape_type_and_first_token(loaded: LoadedModel) -> None:
    tokens = sample(loaded)
    assert tokens.shape == (3, 12)
    assert tokens.dtype == torch.int64
    assert (tokens[:, 0] == loaded.tokenizer.bos_token_id).all()
    assert int(tokens.min()) >= 0
    assert int(tokens.max()) < 128


def test_a_seed_gives_one_text_and_leaves_the_global_state(loaded: LoadedModel) -> None:
    before = torch.get_rng_state()
    first = sample(loaded)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    assert torch.equal(sample(loaded), first)
    assert not torch.equal(sample(loaded, seed=1), first)


def tiny_mamba() -> PreTrainedModel:
    config = MambaConfig(
        vocab_size=128, hidden_size=32, num_hidden_layers=2, initializer_range=0.2
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MambaForCausalLM(config).eval()


def tiny_mistral() -> PreTrainedModel:
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(vocab_size=128, num_key_value_heads=2, sliding_window=8, **size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MistralForCausalLM(config).eval()


def test_without_a_cache_the_text_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_mamba(), tiny_tokenizer()
    expected = sample_text(model, tokenizer, n_sequences=3, length=12, seed=5)
    monkeypatch.setattr(self_text, "_build_cache", lambda *_: {})
    assert torch.equal(sample_text(model, tokenizer, n_sequences=3, length=12, seed=5), expected)


@pytest.mark.parametrize("make", [tiny_llama, tiny_mistral, tiny_mamba])
def test_each_token_inverts_the_distribution_given_all_before_it(
    make: Callable[[], PreTrainedModel],
) -> None:
    """The cache is right: one forward pass over whole sequences explains every draw."""
    model = make()
    tokens = sample_text(model, tiny_tokenizer(), n_sequences=4, length=20, seed=5)
    draws = torch.rand(4, 19, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        cumulative = model(tokens).logits.softmax(-1).cumsum(-1)[:, :-1]
    index = tokens[:, 1:, None]
    above = cumulative.gather(-1, index)[..., 0]
    below = torch.where(index > 0, cumulative.gather(-1, (index - 1).clamp(min=0)), 0)[..., 0]
    assert (draws <= above + 1e-5).all()
    assert (draws >= below - 1e-5).all()


def test_tokens_follow_the_full_distribution() -> None:
    model = tiny_llama(layers=1)
    tokens = sample_text(model, tiny_tokenizer(), n_sequences=4000, length=2, seed=0)
    expected = model(torch.tensor([[1]])).logits[0, -1].softmax(-1).numpy()
    seen = np.bincount(tokens[:, 1].numpy(), minlength=128) / 4000
    assert np.abs(seen - expected).max() < 4 * np.sqrt(expected.max() / 4000)
    assert np.abs(seen - expected).sum() < 0.25


def test_impossible_tokens_are_never_chosen() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).repeat(3, 1)
    draws = torch.tensor([[0.0], [0.5], [1 - 2**-24]])
    assert self_text._choose(logits, draws).flatten().tolist() == [1, 3, 3]


def test_sampling_goes_on_after_the_end_token(loaded: LoadedModel) -> None:
    tokens = sample(loaded, n=64, length=24)
    inner = tokens[:, 1:-1] == loaded.tokenizer.eos_token_id
    assert inner.any()
    after = tokens[:, 2:][inner]
    assert len(set(after.tolist())) > 1


def test_batches_do_not_change_the_draws(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sample(loaded, n=5)
    monkeypatch.setattr(self_text, "_TOKENS_AT_ONCE", 24)
    assert torch.equal(sample(loaded, n=5), whole)


@pytest.mark.parametrize(("n", "length"), [(1, 1), (1, 2), (3, 1)])
def test_the_smallest_samples(loaded: LoadedModel, n: int, length: int) -> None:
    assert sample(loaded, n, length).shape == (n, length)


def test_a_model_without_bos_starts_from_its_end_token() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    assert find_first_tokens(tiny_llama(), tokenizer) == (tokenizer.eos_token_id,)
    tokenizer.eos_token = None
    model = tiny_llama(eos_token_id=[5, 6], bos_token_id=None)
    assert find_first_tokens(model, tokenizer) == (5,)
    with pytest.raises(DataError, match="give a text source"):
        find_first_tokens(tiny_llama(eos_token_id=None, bos_token_id=None), tokenizer)


def test_several_first_tokens_are_read_before_the_text(cache: Path) -> None:
    model = tiny_llama()
    several = sample_text(
        model, tiny_tokenizer("<eos> <unk> $A"), n_sequences=3, length=12, seed=5
    )
    assert several[:, :2].tolist() == [[2, 0]] * 3
    # the draws decide on the distribution of a plain pass over all that stands before
    draws = torch.rand(3, 10, generator=torch.Generator().manual_seed(5))
    for place in range(2, 12):
        with torch.inference_mode():
            scores = model(input_ids=several[:, :place]).logits[:, -1]
        wanted = self_text._choose(scores, draws[:, place - 2 : place - 1])
        assert torch.equal(several[:, place], wanted[:, 0])


def test_a_sample_with_other_first_tokens_is_not_used(loaded: LoadedModel, cache: Path) -> None:
    first = sample_cached_text(loaded, n_sequences=2, length=8, seed=0)
    tokenizer = tiny_tokenizer("<eos> $A")
    identity = identify(loaded.model, tokenizer)
    other = replace(loaded, tokenizer=tokenizer, identity=identity)
    found = sample_cached_text(other, n_sequences=2, length=8, seed=0)
    assert (first[:, 0].tolist(), found[:, 0].tolist()) == ([1, 1], [2, 2])


def test_a_sample_is_made_once(
    loaded: LoadedModel, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sample_cached_text(loaded, n_sequences=2, length=8, seed=0)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(self_text, "sample_text", None)  # calling it again would raise
    assert torch.equal(sample_cached_text(loaded, n_sequences=2, length=8, seed=0), first)


def test_every_fact_that_changes_the_text_is_in_the_key(
    loaded: LoadedModel, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [(loaded, 2, 8, 0), (loaded, 3, 8, 0), (loaded, 2, 9, 0), (loaded, 2, 8, 1)]
    others = [tiny_loaded(seed=1), tiny_loaded(dtype=torch.bfloat16), tiny_loaded(**OTHER)]
    cases += [(other, 2, 8, 0) for other in others]
    for model, n, length, seed in cases:
        sample_cached_text(model, n_sequences=n, length=length, seed=seed)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    sample_cached_text(loaded, n_sequences=2, length=8, seed=0)
    assert len(list(cache.iterdir())) == len(cases) + 1


def test_another_configuration_has_a_text_of_its_own(loaded: LoadedModel) -> None:
    other = tiny_loaded(**OTHER)
    expected = sample(other, n=2, length=24)
    first = sample_cached_text(loaded, n_sequences=2, length=24, seed=0)
    found = sample_cached_text(other, n_sequences=2, length=24, seed=0)
    assert torch.equal(found, expected)
    assert not torch.equal(found, first)


@pytest.mark.parametrize("damage", ["empty", "cut", "token"])
def test_a_damaged_cache_file_is_sampled_anew(
    loaded: LoadedModel, cache: Path, damage: str
) -> None:
    """A changed token is damage too: it would be another text."""
    first = sample_cached_text(loaded, n_sequences=2, length=8, seed=0)
    (path,) = cache.glob("*/*.safetensors")
    whole = path.read_bytes()
    token = bytes([whole[-8] ^ 1])
    damaged = {"empty": b"", "cut": whole[:-5], "token": whole[:-8] + token + whole[-7:]}
    path.write_bytes(damaged[damage])
    assert torch.equal(sample_cached_text(loaded, n_sequences=2, length=8, seed=0), first)
    assert path.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_no_fault(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPARSITY_SEARCH_CACHE", str(tmp_path / "file"))
    assert sample_cached_text(loaded, n_sequences=1, length=4, seed=0).shape == (1, 4)


@pytest.mark.real_model
def test_smollm2_writes_text() -> None:
    from sparsity_search.models.io.loading import load_model

    loaded = load_model("smollm2")
    text = loaded.tokenizer.decode(sample(loaded, n=8, length=64)[:, 1:].flatten())
    assert text.count(" the ") >= 3
