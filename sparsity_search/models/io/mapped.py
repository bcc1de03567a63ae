"""Tensors in a file that memory is only a window on."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from sparsity_search.errors import ModelError

_ALIGNMENT = 64


class Mapped(Mapping[str, Tensor]):
    """Copies of tensors in a temporary file; they are read and written in place, on the CPU.

    The system keeps in memory what is in use of them, for as long as there is room. The file has
    no name, so that it is gone with the process, however that ends; it lies in the folder for
    temporary files (``TMPDIR``), which should not be one in memory.

    Args:
        tensors: By name; each is asked for when the one before is written.

    Raises:
        ModelError: There is no room for the file.
    """

    def __init__(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        places: dict[str, tuple[int, torch.dtype, torch.Size]] = {}
        with tempfile.TemporaryFile() as file:
            try:
                for name, tensor in tensors:
                    file.write(bytes(-file.tell() % _ALIGNMENT))
                    places[name] = (file.tell(), tensor.dtype, tensor.shape)
                    file.write(_bytes(tensor).numpy().data)
                file.flush()
            except OSError as error:
                raise ModelError(
                    f"no room for offloaded weights in {tempfile.gettempdir()} "
                    f"({error.strerror}): set TMPDIR to a folder on a larger disk"
                ) from error
            file.truncate(max(file.tell(), 1))
            self._map = mmap.mmap(file.fileno(), 0)
        self._tensors = {name: self._tensor(*place) for name, place in places.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def release(self) -> None:
        """Take what was in use out of this process's memory; the file has it all."""
        if hasattr(self._map, "madvise"):  # not on Windows, which does so when memory is short
            self._map.madvise(mmap.MADV_DONTNEED)

    def _tensor(self, start: int, dtype: torch.dtype, shape: torch.Size) -> Tensor:
        if not shape.numel():
            return torch.empty(shape, dtype=dtype)
        flat = torch.frombuffer(self._map, dtype=dtype, count=shape.numel(), offset=start)
        return flat.view(shape)


def _bytes(tensor: Tensor) -> Tensor:
    # numpy knows no bfloat16
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
