from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparsity_search.data.self_text import sample_text
from sparsity_search.data.sequences import Request, draw
from sparsity_search.errors import ModelError
from sparsity_search.models.io.loading import load_model
from sparsity_search.models.io.saving import save_checkpoint
from sparsity_search.models.io.vocabulary import check_tokens, check_vocabulary
from sparsity_search.testing.models import tiny_llama, tiny_loaded, tiny_tokenizer


def save(folder: Path, rows: int, *added: str) -> str:
    """Save a tiny model whose tokenizer has 99 ordinary tokens, and perhaps added ones."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(list(added))
    save_checkpoint(tiny_llama(vocab_size=rows), tokenizer, folder)
    return str(folder)


def test_a_tokenizer_of_a_larger_model(tmp_path: Path) -> None:
    largest = max(tiny_tokenizer().get_vocab().values())
    load_model(save(tmp_path / "equal", largest + 1))
    with pytest.raises(ModelError, match=f"ids up to {largest}, .* only {largest} rows"):
        load_model(save(tmp_path / "smaller", largest))


def test_an_added_token_without_a_row(tmp_path: Path) -> None:
    rows = len(tiny_tokenizer())
    loaded = load_model(save(tmp_path / "model", rows, "<image>"))
    text = tmp_path / "text.txt"
    text.write_text("a picture and its words")
    assert draw([Request("a", str(text), 1, 8)], loaded, 0)["a"].shape == (1, 8)
    text.write_text("a <image> and its words")
    with pytest.raises(ModelError, match=rf"'<image>' \({rows}\), .* only {rows} rows"):
        draw([Request("a", str(text), 1, 8)], loaded, 0)


def test_a_tokenizer_that_does_not_list_its_added_tokens() -> None:
    class Unlisted:
        """As `MistralCommonBackend` of transformers."""

        all_special_ids = (128, 129)

        def get_vocab(self) -> dict[str, int]:
            return {str(index): index for index in range(130)}

        @property
        def added_tokens_decoder(self) -> dict[int, str]:
            raise NotImplementedError

    check_vocabulary(tiny_llama(), Unlisted())
    with pytest.raises(ModelError, match=r"ids up to 127, .* only 127 rows"):
        check_vocabulary(tiny_llama(vocab_size=127), Unlisted())


def test_a_first_token_without_a_row() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<start>"})
    model = tiny_llama(vocab_size=len(tokenizer) - 1)
    with pytest.raises(ModelError, match="'<start>'"):
        sample_text(model, tokenizer, n_sequences=1, length=8, seed=0)


def test_the_last_row_is_a_row() -> None:
    loaded = tiny_loaded()
    check_tokens(torch.tensor([[0, 127]]), loaded.model, loaded.tokenizer)
    with pytest.raises(ModelError, match="128"):
        check_tokens(torch.tensor([[128, 0]]), loaded.model, loaded.tokenizer)
