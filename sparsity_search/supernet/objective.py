"""The objective of a search: the proxy's score of the supernet switched to a profile."""

from __future__ import annotations

from sparsity_search.errors import ConfigError
from sparsity_search.interfaces.evaluator import Proxy
from sparsity_search.models.running.prefix_cache import PrefixCache
from sparsity_search.profiles.profile import SparsityProfile
from sparsity_search.supernet.switch import Switch
from sparsity_search.trials.history import Fidelity, Score
from sparsity_search.utils.random import create_generator


class SupernetObjective:
    """Objective that scores profiles by switching one resident model.

    Args:
        prefixes: The resident model, which skips blocks that consecutive profiles share.
        switch: Sets the model to a profile.
        proxy: Scores the model.
        pool: Number and length of the proxy's sequences.
        seed: Seed of the order in which sequences are drawn.
    """

    def __init__(
        self, prefixes: PrefixCache, switch: Switch, proxy: Proxy, pool: tuple[int, int], seed: int
    ) -> None:
        self._prefixes = prefixes
        self._switch = switch
        self._proxy = proxy
        self._n_sequences, self._length = pool
        self._seed = seed

    def __call__(
        self, profile: SparsityProfile, fidelity: Fidelity, known: Score | None = None
    ) -> Score:
        """Return the score of a profile on the fidelity's tokens.

        Args:
            profile: The profile.
            fidelity: The number of tokens and their subset.
            known: The profile's score on the first of these tokens, which are not run again.
        """
        rows, parts = self.rows(fidelity), known.parts if known else ()
        self._switch.to(profile)
        with self._switch.narrow(), self._prefixes.at(profile.states) as model:
            score = self._proxy.score(model, rows[len(parts) :])
        return self._proxy.combine([*parts, *score.parts]) if parts else score

    def rows(self, fidelity: Fidelity) -> list[int]:
        """Return the indices of a fidelity's sequences.

        They come first in the order of its subset, so that of one subset more tokens contain
        fewer.

        Raises:
            ConfigError: The pool holds fewer tokens, or a single sequence is longer.
        """
        n_rows = fidelity.tokens // self._length
        if not 1 <= n_rows <= self._n_sequences:
            raise ConfigError(
                f"a rung of {fidelity.tokens} tokens needs 1 to {self._n_sequences} sequences "
                f"of {self._length} tokens: change ladder.rungs or data.search_sequences"
            )
        order = create_generator(self._seed, "rows", fidelity.subset).permutation(
            self._n_sequences
        )
        return [int(row) for row in order[:n_rows]]
