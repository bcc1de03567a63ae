"""Whole experts of a mixture as structures of one matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sparsity_search.errors import ModelError
from sparsity_search.evidence.structures import StructureLayout, select_fullest
from sparsity_search.models.anatomy.banks import FusedBank
from sparsity_search.models.anatomy.experts import ExpertMixture, get_gradient
from sparsity_search.models.anatomy.routers import ExpertTensor, find_expert_tensors, find_router
from sparsity_search.models.anatomy.views import WeightView


class ExpertsView(WeightView):
    """The experts of one mixture, as structures of one matrix.

    The columns of an expert are its last matrix (``down_proj``), its first matrix transposed
    (``gate_up_proj`` or ``up_proj``), all its other numbers one after the other (biases, and
    what corrects the router's choice), and its row of the router; both with zeros up to a whole
    column.
    There are no biases that experts share.

    Writing physically removes empty experts: all tensors with an entry for each expert lose
    theirs, so that the router chooses among the others. Reading returns zeros for removed
    experts. (Experts that are empty in the dense model stay until others are removed too.)
    Groups of the router stay of one size.

    Args:
        mixture: The mixture.

    Raises:
        ModelError: The experts are stored in another way, or the router is not supported.
    """

    def __init__(self, mixture: ExpertMixture) -> None:
        self.bank = _get_bank(mixture)
        self._first, self._last = (ExpertTensor(self.bank.module, n) for n in self.bank.roles)
        count, hidden, inner = self._columns(self._last, self._last.tensor).shape
        self._router = find_router(mixture)
        self._others = [*find_expert_tensors(mixture), *self._router.others]
        if count % self._router.groups:
            raise ModelError(
                f"the {count} experts of {mixture.name} do not make "
                f"{self._router.groups} equal groups, so whole experts cannot be removed: choose "
                "--units weights"
            )
        made = self._columns(self._first, self._first.tensor).shape[2]
        sizes = [sum(p.tensor.numel() for p in parts) // count for parts in self._packed()]
        self._widths = [inner, made, *(-(-size // hidden) for size in sizes)]
        self._structures = StructureLayout(
            count,
            inner,
            sum(self._widths),
            biases=0,
            groups=self._router.groups,
            routing=self._widths[-1],
        )
        self._cost = sum(parameter.numel() for parameter in self.parameters()) // count
        self._kept = torch.arange(count)
        self._dense_empty = self._structures.empty(self.read()).cpu()

    @property
    def module(self) -> nn.Module:
        """The module of all experts."""
        return self.bank.module

    @property
    def kept(self) -> Tensor:
        """Indices in the dense model of the experts that remain, ``(n,)`` int64."""
        return self._kept

    @property
    def structures(self) -> StructureLayout:
        """Layout of the matrix."""
        return self._structures

    @property
    def size(self) -> tuple[int, int]:
        """Number of experts of a group, and weights of one expert of each group."""
        return self._structures.items, self._structures.groups * self._cost

    def parts(self) -> list[ExpertTensor]:
        """Return all tensors that have an entry for each expert."""
        return [self._last, self._first, self._router.rows, *self._others]

    def parameters(self) -> list[nn.Parameter]:  # type: ignore[override]
        """Return those of `parts` that are parameters, not buffers."""
        tensors = (part.tensor for part in self.parts())
        return [tensor for tensor in tensors if isinstance(tensor, nn.Parameter)]

    def read(self) -> Tensor:
        """Return a new tensor, ``(hidden, count · width)``, in the widest dtype of its parts."""
        return self._matrix(lambda tensor: tensor.detach())

    def read_gradient(self) -> Tensor:
        """Return the gradient in the shape of `read`; zero for removed experts and buffers."""
        return self._matrix(get_gradient)

    def write(self, weight: Tensor) -> None:
        """Write the experts that are not empty, and remove the others.

        Raises:
            ModelError: Fewer experts would remain than the router needs, or its groups would
                differ in size. Nothing is written.
        """
        shape, before = self._structures, len(self._kept)
        kept = self._choose(shape.empty(weight).cpu())
        bodies = shape.bodies(weight)[:, kept.to(weight.device)].transpose(0, 1)
        last, first, *packed = torch.split(bodies, self._widths, dim=2)
        for part, matrices in ((self._last, last), (self._first, first.mT)):
            part.assign(matrices.mT if part.name in self.bank.transposed else matrices)
        for parts, columns in zip(self._packed(), packed, strict=True):
            sizes = [part.tensor.numel() // before for part in parts]
            numbers = torch.split(columns.mT.flatten(1)[:, : sum(sizes)], sizes, dim=1)
            for part, entries in zip(parts, numbers, strict=True):
                part.assign(entries)
        self._kept = kept
        self._router.set_count(before, len(kept))

    def check(self, n_removed: int) -> None:
        """Check that the router has enough experts to choose from without some of each group.

        Raises:
            ModelError: It has not.
        """
        shape, router = self._structures, self._router
        if shape.items - n_removed < router.least:
            among = f" of {router.groups} groups" if router.groups > 1 else ""
            raise ModelError(
                f"{shape.count - n_removed * shape.groups} of {shape.count} experts{among} would "
                f"remain, but the router needs {router.least * router.groups}, as each token is "
                f"routed to {router.top_k}: remove fewer, with --bounds "
                f"experts=0:{1 - router.least / shape.items:g}"
            )

    def _choose(self, empty: Tensor) -> Tensor:
        """Return the experts to keep when some are empty, ``(n,)`` int64, ascending."""
        shape = self._structures
        if torch.equal(empty, self._dense_empty):
            return torch.arange(shape.count)
        fullest = int((~shape.by_group(empty)).sum(dim=1).max())
        self.check(shape.items - fullest)
        chosen = torch.stack([select_fullest(own, fullest) for own in shape.by_group(empty)])
        kept = (chosen + torch.arange(0, shape.count, shape.items)[:, None]).flatten()
        if (empty & ~self._dense_empty)[kept].any():
            raise ModelError(
                f"the {shape.groups} groups of experts would differ in size, which the router "
                "does not support: remove equally many of each"
            )
        return kept

    def _columns(self, part: ExpertTensor, tensor: Tensor) -> Tensor:
        """Return one of the experts' two matrices as columns, ``(experts, hidden, columns)``."""
        matrices = self.bank.matrices(tensor, part.name)
        return matrices if part is self._last else matrices.mT

    def _matrix(self, get: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the matrix of what ``get`` returns for each tensor."""
        last, first = (self._columns(p, get(p.tensor)) for p in (self._last, self._first))
        packed = [self._pack(parts, get, last) for parts in self._packed()]
        bodies = torch.cat([last, first, *packed], dim=2)
        full = bodies.new_zeros(bodies.shape[1], self._structures.count, bodies.shape[2])
        full[:, self._kept.to(full.device)] = bodies.transpose(0, 1)
        return full.flatten(1)

    def _packed(self) -> tuple[Sequence[ExpertTensor], Sequence[ExpertTensor]]:
        """Return the tensors whose entries stand one after the other in columns."""
        return self._others, [self._router.rows]

    def _pack(
        self, parts: Sequence[ExpertTensor], get: Callable[[Tensor], Tensor], like: Tensor
    ) -> Tensor:
        """Return the entries of tensors as columns, ``(experts, hidden, columns)``."""
        experts, hidden, _ = like.shape
        if not parts:
            return like[:, :, :0]
        entries = [part.entries(get(part.tensor)).to(like.device) for part in parts]
        numbers = torch.cat(entries, dim=1)
        padded = nn.functional.pad(numbers, (0, -numbers.shape[1] % hidden))
        return padded.view(experts, -1, hidden).mT


def _get_bank(mixture: ExpertMixture) -> FusedBank:
    """Return the bank of a mixture from which whole experts can be removed.

    Raises:
        ModelError: They cannot, because the experts are stored in another way.
    """
    if isinstance(mixture.bank, FusedBank) and mixture.bank.divisible:
        return mixture.bank
    raise ModelError(
        f"the experts of {mixture.name} are not two stacks of matrices with one "
        "matrix an expert, so whole experts cannot be removed: choose --units weights"
    )
