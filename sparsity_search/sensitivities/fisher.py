"""Fisher information: the losses of all units and levels from a few backward passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparsity_search.errors import ConfigError
from sparsity_search.interfaces.pruner import Pruner
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.models.running.recording import (
    Differentiate,
    choose_positions,
    compute_slopes,
    draw_labels,
    record,
)
from sparsity_search.profiles.scores import Scores
from sparsity_search.pruning.walk import pruned_units
from sparsity_search.sensitivities.bases.losses import enforce_rising
from sparsity_search.sensitivities.bases.short_text import ShortTextSensitivity


@dataclass(frozen=True, kw_only=True)
class FisherSensitivity(ShortTextSensitivity):
    """KL to the dense model to second order, from gradients at labels that the model draws.

    For a small change ``ΔW`` of the weights, ``KL(dense ‖ pruned) ≈ ½ E[(Σ_t c_t)²] / T`` nats a
    token, where ``c_t = g_t · (ΔW x_t)``, ``x_t`` is a linear layer's input at position ``t`` and
    ``g_t`` the gradient, with respect to its output there, of the log-likelihood of ``T`` labels
    drawn from the dense model's own predictions (Fisher information; Amari 1998, Martens 2020,
    arXiv 1412.1193, section 5). One gradient serves all units, all levels and any change.

    With ``span = 1`` positions count as independent, ``½ mean_t c_t²``: what crosses positions is
    left out, for a far smaller variance. Larger spans sum that many positions before squaring;
    the whole sequence is the unbiased estimate.

    Attributes:
        positions: How many positions of each are contracted, at most; evenly spaced.
        span: Consecutive positions summed before squaring; 0 for the whole sequence.
        draws: Draws of labels for each sequence: one backward pass each.
        pairs: Keep what units lose together beyond the sum of both.
    """

    sequences: int = 16
    positions: int = 128
    span: int = 1
    draws: int = 1
    pairs: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("positions", "draws"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.span < 0:
            raise ConfigError(f"span must not be negative, not {self.span}")

    def measure(
        self,
        subject: PrunableModel,
        tokens: Tensor,
        pruner: Pruner,
        tables: Sequence[tuple[int, ...]],
        *,
        seed: int = 0,
    ) -> Scores:
        """Return the losses in nats a token, see `Sensitivity.measure`.

        Raises:
            ConfigError: A unit is not made of linear layers.
            NumericalError: A gradient is not finite.
        """
        self.check_units(subject.units)
        text = self.text(tokens)
        span = min(self.span or text.shape[1], text.shape[1])
        positions = choose_positions(text.shape[1], self.positions, span)
        recordings = record(subject, text, positions, self._differentiate(seed))
        losses, samples = [], []
        for unit, view, dense, levels, _ in pruned_units(
            subject, tokens, pruner, tables, seed=seed
        ):
            found = torch.stack(
                [compute_slopes(view, level - dense, recordings) for level in levels]
            )
            found = found.view(len(found), -1, span).sum(-1)
            losses.append(
                enforce_rising(found.double().square().mean(1).cpu() / 2 / span, unit.name)
            )
            if self.pairs:
                samples.append(found.cpu().numpy())
        counts = tuple(np.array(table) for table in tables)
        pairs = compute_pair_losses(samples, span) if self.pairs else None
        return Scores(subject.layout, counts, tuple(losses), pairs)

    def _differentiate(self, seed: int) -> Differentiate:
        return lambda logits, rows: draw_labels(logits, self.draws, seed, rows.start)


def compute_pair_losses(samples: Sequence[np.ndarray], span: int) -> np.ndarray:
    """Return the joint losses of entries of different units, ``(n_entries, n_entries)`` float32.

    Args:
        samples: Sums of slopes over spans, ``(n_levels, n_spans)`` for each unit.
        span: Positions in a span.
    """
    rows = np.concatenate(samples).astype(np.float32)
    pairs = rows @ rows.T / (rows.shape[1] * span)
    start = 0
    for part in samples:
        pairs[start : start + len(part), start : start + len(part)] = 0
        start += len(part)
    return np.asarray(pairs)
