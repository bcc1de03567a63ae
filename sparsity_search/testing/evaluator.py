"""The rules that every evaluator keeps, see `interfaces.evaluator.Evaluator`."""

from __future__ import annotations

import dataclasses
import math
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from sparsity_search.errors import DataError
from sparsity_search.interfaces.evaluator import Evaluator, Proxy
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.testing.models import VOCABULARY, tiny_llama, tiny_tokenizer

N_ROWS, LENGTH = 6, 24


def draw_random_tokens(n_rows: int, length: int, *, seed: int = 0) -> Tensor:
    """Return ``(n_rows, length)`` random tokens, independent of the global random state."""
    source = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (n_rows, length), generator=source)


def copy_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers of a model."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def sample_text(model: nn.Module, n_rows: int, length: int) -> Tensor:
    """Return tokens that the model itself finds likely: sampled from it, reproducibly."""
    source = torch.Generator().manual_seed(0)
    tokens = draw_random_tokens(n_rows, 1)
    with torch.inference_mode():
        for _ in range(length - 1):
            probabilities = model(input_ids=tokens).logits[:, -1].float().softmax(-1)
            drawn = torch.multinomial(probabilities, 1, generator=source)
            tokens = torch.cat([tokens, drawn], dim=1)
    return tokens.clone()


@cache
def _text(dtype: torch.dtype) -> Tensor:
    """Return `sample_text` the tiny model."""
    return sample_text(tiny_llama(dtype=dtype), N_ROWS, LENGTH)


def scale_model(factor: float) -> nn.Module:
    """Return the tiny model with all its units' weights times a factor."""
    model: nn.Module = tiny_llama()
    for view in PrunableModel(model).views.values():
        view.write(view.read() * factor)
    return model


def bind_proxy(evaluator: Evaluator, dense: nn.Module, tokens: Tensor) -> Proxy:
    """Return the proxy for a tiny model and its tokenizer."""
    return evaluator.bind(dense, tokens, tiny_tokenizer())


class _Fixtures:
    @pytest.fixture
    def dense(self) -> nn.Module:
        """A tiny random model."""
        return scale_model(1.0)

    @pytest.fixture
    def tokens(self) -> Tensor:
        """Text that the dense model finds likely."""
        return _text(torch.float32).clone()


class EvaluatorContract(_Fixtures):
    """Inherit in a test module that has a fixture ``evaluator``, and one of those below.

    If the evaluator has its own data, they must have at least `N_ROWS` rows that do not all score
    the same, and the dense tiny model must score better on them than one with smaller weights.
    """

    def test_is_a_value(self, evaluator: Evaluator) -> None:
        """Equal settings are equal, hashable, and print as one line."""
        other = dataclasses.replace(evaluator)  # type: ignore[type-var]
        assert other is not evaluator
        assert evaluator == other
        assert hash(evaluator) == hash(other)
        assert "\n" not in repr(evaluator)

    def test_lower_is_better(self, evaluator: Evaluator, dense: nn.Module, tokens: Tensor) -> None:
        """The dense model is best, and one without its blocks is worst."""
        proxy = bind_proxy(evaluator, dense, tokens)
        rows = range(N_ROWS)
        scores = [proxy.score(scale_model(factor), rows).value for factor in (1.0, 0.9, 0.0)]
        assert all(math.isfinite(score) for score in scores)
        assert scores == sorted(set(scores))

    def test_one_part_for_each_row(
        self, evaluator: Evaluator, dense: nn.Module, tokens: Tensor
    ) -> None:
        """A row's part is the same alone, among others, and in any order; rows differ."""
        proxy = bind_proxy(evaluator, dense, tokens)
        model, rows = scale_model(0.5), [4, 0, 5, 2]
        together = proxy.score(model, rows)
        assert len(together.parts) == len(rows)
        assert len(set(together.parts)) > 1, "every row has the same part: are rows ignored?"
        alone = [proxy.score(model, [row]).parts[0] for row in rows]
        assert together.parts == pytest.approx(alone, rel=1e-4)
        swapped = proxy.score(model, rows[::-1])
        assert swapped.parts == pytest.approx(together.parts[::-1], rel=1e-4)
        assert swapped.value == pytest.approx(together.value, rel=1e-4)

    def test_deterministic(self, evaluator: Evaluator, dense: nn.Module, tokens: Tensor) -> None:
        """Equal calls give equal scores, whatever was scored between them."""
        proxy, rows = bind_proxy(evaluator, dense, tokens), range(N_ROWS)
        state = torch.get_rng_state()
        first = proxy.score(scale_model(0.5), rows)
        proxy.score(scale_model(0.0), [3, 1])
        assert proxy.score(scale_model(0.5), rows) == first
        assert bind_proxy(evaluator, dense, tokens).score(scale_model(0.5), rows) == first
        assert torch.equal(torch.get_rng_state(), state)

    def test_one_resident_model(
        self, evaluator: Evaluator, dense: nn.Module, tokens: Tensor
    ) -> None:
        """The dense model itself, bound and then rewritten in place, scores as a copy does."""
        proxy, rows = bind_proxy(evaluator, dense, tokens), range(N_ROWS)
        for view in PrunableModel(dense).views.values():
            view.write(view.read() * 0.5)
        other = bind_proxy(evaluator, tiny_llama(), tokens)
        assert proxy.score(dense, rows) == other.score(scale_model(0.5), rows)

    def test_model_is_unchanged(
        self, evaluator: Evaluator, dense: nn.Module, tokens: Tensor
    ) -> None:
        """Neither binding nor scoring writes to a model or to the text, or leaves a hook."""
        before, text = copy_weights(dense), tokens.clone()
        bind_proxy(evaluator, dense, tokens).score(dense, range(N_ROWS))
        after = copy_weights(dense)
        assert all(torch.equal(after[name], weight) for name, weight in before.items())
        assert torch.equal(tokens, text)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in dense.modules())

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_not_finite(
        self, evaluator: Evaluator, dense: nn.Module, tokens: Tensor, bad: float
    ) -> None:
        """Broken weights give a score that is not finite, never an exception."""
        proxy = bind_proxy(evaluator, dense, tokens)
        model = tiny_llama()
        view = next(iter(PrunableModel(model).views.values()))
        view.write(torch.full_like(view.read(), bad))
        assert not math.isfinite(proxy.score(model, range(N_ROWS)).value)

    def test_half_precision(self, evaluator: Evaluator) -> None:
        """A bfloat16 model scores about as its float32 twin."""
        dense = tiny_llama(dtype=torch.bfloat16)
        tokens = _text(torch.bfloat16).clone()
        low = bind_proxy(evaluator, dense, tokens).score(
            scale_model(0.5).bfloat16(), range(N_ROWS)
        )
        full = bind_proxy(evaluator, tiny_llama(), tokens).score(scale_model(0.5), range(N_ROWS))
        assert low.value == pytest.approx(full.value, rel=0.1)


class TextContract(_Fixtures):
    """Rules for evaluators whose rows are the sequences of the text."""

    def test_has_no_own_data(self, evaluator: Evaluator) -> None:
        """The evaluator reads the text only."""
        assert evaluator.own_data() is None

    def test_pool_does_not_matter(
        self, evaluator: Evaluator, dense: nn.Module, tokens: Tensor
    ) -> None:
        """A row scores the same in another pool."""
        few, model = bind_proxy(evaluator, dense, tokens[2:4]), scale_model(0.5)
        whole = bind_proxy(evaluator, dense, tokens)
        assert few.score(model, [0, 1]).parts == pytest.approx(
            whole.score(model, [2, 3]).parts, rel=1e-4
        )

    def test_batching_does_not_matter(self, evaluator: Evaluator, dense: nn.Module) -> None:
        """Rows that fill more than one batch, with a rest, score as they do alone."""
        tokens = draw_random_tokens(5, 200).repeat(3, 1)  # ten rows of 200 tokens pass at once
        proxy = bind_proxy(evaluator, dense, tokens)
        parts = proxy.score(scale_model(0.5), range(15)).parts
        assert parts[:5] * 3 == pytest.approx(parts, rel=1e-4)
        assert parts[12] == pytest.approx(proxy.score(scale_model(0.5), [2]).parts[0], rel=1e-4)

    def test_a_device_is_waited_for_once(
        self, evaluator: Evaluator, dense: nn.Module, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No number is read before the end: on a GPU each read waits for all work before it."""
        proxy = bind_proxy(evaluator, dense, draw_random_tokens(N_ROWS, LENGTH))
        proxy.score(dense, range(N_ROWS))
        for reading in ("__float__", "__int__", "item"):
            monkeypatch.setattr(Tensor, reading, None)
        assert proxy.score(dense, range(N_ROWS)).parts


class OwnDataContract(_Fixtures):
    """Rules for evaluators with rows of their own."""

    def test_has_own_data(self, evaluator: Evaluator) -> None:
        """The data are known without a model, and always the same."""
        own = evaluator.own_data()
        assert own is not None
        assert own.n_rows >= N_ROWS
        assert len(own.digest) == 16
        again = dataclasses.replace(evaluator).own_data()  # type: ignore[type-var]
        assert again == own

    def test_the_text_is_not_read(
        self, evaluator: Evaluator, dense: nn.Module, tokens: Tensor
    ) -> None:
        """Scores do not depend on the bound text, even if it is empty."""
        scores = [
            bind_proxy(evaluator, dense, text).score(scale_model(0.5), [1, 3])
            for text in (tokens, tokens[:0], 0 * tokens)
        ]
        assert scores[0] == scores[1] == scores[2]

    def test_rows_that_are_not_there(
        self, evaluator: Evaluator, dense: nn.Module, tokens: Tensor
    ) -> None:
        """The last row can be scored; rows after it are refused."""
        own = evaluator.own_data()
        assert own is not None
        proxy = bind_proxy(evaluator, dense, tokens)
        assert math.isfinite(proxy.score(dense, [own.n_rows - 1]).value)
        for row in (own.n_rows, -1):
            with pytest.raises(DataError):
                proxy.score(dense, [0, row])
