"""Tensors in a memory-mapped temporary file."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from sparsity_search.errors import ModelError
from sparsity_search.models.io.tensor_bytes import to_bytes

_ALIGNMENT = 64


class MappedTensors(Mapping[str, Tensor]):
    """Copies of tensors in a temporary file, read and written in place, on the CPU.

    The system keeps the pages in use in memory while there is room. The file has no name, so it
    disappears with the process, however that ends. It lies in the folder for temporary files
    (``TMPDIR``), which should not be a folder in memory.

    Args:
        tensors: Pairs of name and tensor; each is requested after the previous one is written.

    Raises:
        ModelError: The disk has no room for the file.
    """

    def __init__(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        places: dict[str, tuple[int, torch.dtype, torch.Size]] = {}
        with tempfile.TemporaryFile() as file:
            try:
                for name, tensor in tensors:
                    file.write(bytes(-file.tell() % _ALIGNMENT))
                    places[name] = (file.tell(), tensor.dtype, tensor.shape)
                    file.write(to_bytes(tensor).numpy().data)
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
        """Drop the pages in use from this process's memory; the file keeps the data."""
        if hasattr(self._map, "madvise"):  # Windows has none, and drops pages when it must
            self._map.madvise(mmap.MADV_DONTNEED)

    def _tensor(self, start: int, dtype: torch.dtype, shape: torch.Size) -> Tensor:
        if not shape.numel():
            return torch.empty(shape, dtype=dtype)
        flat = torch.frombuffer(self._map, dtype=dtype, count=shape.numel(), offset=start)
        return flat.view(shape)
