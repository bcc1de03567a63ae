"""The cost of a method: passes of text through the model, and time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of some work.

    Attributes:
        seconds: By the clock.
        cpu_seconds: Of all threads of this process.
        passes: Passes of the calibration text through all decoder blocks, without gradients.
        gradient_passes: Passes whose outputs have a gradient.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    passes: float = 0.0
    gradient_passes: float = 0.0

    def to_json(self) -> dict[str, float]:
        """Return the cost as a JSON object, times in milliseconds' precision."""
        return {key: round(value, 3) for key, value in asdict(self).items()}


class Meter:
    """Within, counts the tokens that pass each decoder block, and takes the time.

    A pass counts once a block has returned: one whose input was only looked at does not. A block
    whose ``forward`` was replaced on the object is skipped too, since it does not run.

    Args:
        blocks: The decoder blocks.
        tokens: Size of the calibration text, the unit of passes; times the number of streams, if
            the model has several, see `BlockFlow.streams`.
    """

    def __init__(self, blocks: Sequence[nn.Module] | nn.ModuleList, tokens: int) -> None:
        self._blocks = list(blocks)
        self._unit = max(1, tokens) * len(self._blocks)
        self._tokens = {False: 0, True: 0}
        self._spent = (0.0, 0.0)

    def __enter__(self) -> Self:
        self._handles = [b.register_forward_hook(self._hook(), with_kwargs=True)
                         for b in self._blocks]  # fmt: skip
        self._started = (time.monotonic(), time.process_time())
        return self

    def __exit__(self, *_: object) -> None:
        wall, cpu = self._started
        self._spent = (time.monotonic() - wall, time.process_time() - cpu)
        for handle in self._handles:
            handle.remove()

    @property
    def cost(self) -> Cost:
        """The cost that was measured."""
        seconds, cpu_seconds = self._spent
        return Cost(
            seconds=seconds,
            cpu_seconds=cpu_seconds,
            passes=self._tokens[False] / self._unit,
            gradient_passes=self._tokens[True] / self._unit,
        )

    def _hook(self) -> Any:
        counted = self._tokens  # shared by copies of a block

        def hook(block: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            if "forward" in block.__dict__:
                return
            states = args[0] if args else kwargs["hidden_states"]
            result = output if isinstance(output, Tensor) else output[0]
            counted[bool(result.requires_grad)] += states.shape[:-1].numel()

        return hook
