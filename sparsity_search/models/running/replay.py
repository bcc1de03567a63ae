"""Submodules of a block that need not run again, since all of their weights are rewritten.

An attention returns what its last layer makes of inputs that are known once its other layers are
rewritten. Later runs of the block, for layers behind it, call this last layer alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparsity_search.models.anatomy.blocks import replace_forwards
from sparsity_search.models.running.runner import BlockRunner


class Closing(NamedTuple):
    """A layer whose output is that of a submodule around it.

    Attributes:
        layer: The layer.
        module: The submodule.
        arrange: Makes the submodule's output from the layer's.
    """

    layer: nn.Module
    module: nn.Module
    arrange: Callable[[Tensor], Any]


@contextmanager
def watch_closings(block: nn.Module, layers: Collection[nn.Module]) -> Iterator[list[Closing]]:
    """Yield a list that has, after a run of a block inside, the closings of layers.

    A layer has that of the outermost submodule which returns its output as it is, alone or in a
    tuple with nothing else. Both are called once. What a submodule keeps for others besides what
    it returns is not seen.

    Args:
        block: The block.
        layers: Layers in it.
    """
    inputs: dict[nn.Module, Tensor] = {}
    outputs: dict[nn.Module, Tensor] = {}
    calls: Counter[nn.Module] = Counter()
    found: dict[nn.Module, Closing] = {}

    def enter(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        inputs[layer] = args[0].clone()

    def leave(module: nn.Module, _: Any, output: Any) -> None:
        calls[module] += 1
        if module in layers:
            outputs[module] = output
            return
        returned, arrange = _unpack(output)
        for layer, made in outputs.items():
            around = made is returned and layer in set(module.modules())
            # hooks of others, or the submodule itself, may have changed it
            if around and torch.equal(layer.forward(inputs[layer]), made):
                found[layer] = Closing(layer, module, arrange)

    inside = [module for module in block.modules() if module is not block]
    handles = [layer.register_forward_pre_hook(enter, prepend=True) for layer in layers]
    handles += [module.register_forward_hook(leave) for module in inside]
    closings: list[Closing] = []
    try:
        yield closings
    finally:
        for handle in handles:
            handle.remove()
    closings += [c for c in found.values() if calls[c.layer] == calls[c.module] == 1]


def _unpack(output: Any) -> tuple[Any, Callable[[Tensor], Any]]:
    """Return the only thing in an output, and a function that makes such an output of another."""
    if type(output) is tuple and output and all(part is None for part in output[1:]):
        return output[0], lambda tensor: (tensor, *output[1:])
    return output, lambda tensor: tensor


class Replay:
    """Runs of one block, in which submodules whose layers are rewritten do not run.

    Args:
        block: The block.
        runner: Runs it.
    """

    def __init__(self, block: nn.Module, runner: BlockRunner) -> None:
        self._block = block
        self._runner = runner
        self._inputs: dict[nn.Module, list[Tensor]] = {}
        self._done: list[Closing] = []
        self._batch = -1

    @contextmanager
    def run(self, closings: Sequence[Closing] = ()) -> Iterator[None]:
        """Run all batches inside; closings are those of the layers that are rewritten next."""
        self._batch = -1
        with ExitStack() as stack:
            hook = self._block.register_forward_pre_hook(self._begin)
            stack.callback(hook.remove)
            for layer in {closing.layer for closing in closings}:
                self._inputs[layer] = []
                stack.callback(layer.register_forward_pre_hook(self._record).remove)
            forwards = [self._replay(closing) for closing in self._done]
            stack.enter_context(replace_forwards([c.module for c in self._done], forwards))
            yield
        self._done += closings

    def _begin(self, *_: object) -> None:
        self._batch += 1

    def _record(self, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._inputs[layer].append(args[0].to(self._runner.waiting))

    def _replay(self, closing: Closing) -> Callable[..., Any]:
        layer, inputs = closing.layer, self._inputs[closing.layer]

        def forward(*_: Any, **__: Any) -> Any:
            return closing.arrange(layer(inputs[self._batch].to(self._runner.device)))

        return forward
