"""Columns: one modality's samples, from raw to tensor, decoded at once or when a batch asks for them.

Axes: n samples, B batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from mars_edge.modality import Modality
from mars_training.data.split import Column, RawColumn

MOST_BYTES_IN_MEMORY = 4 * 2**30
"""A column that would be larger than this is read from its files batch by batch."""
_DECODERS = 8


@dataclass(frozen=True)
class RawFiles:
    """Raw samples in files; `paths[i]` is None where a row lacks the modality."""

    paths: Sequence[Path | None]
    read: Callable[[Path], NDArray[Any]]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> NDArray[Any]:
        path = self.paths[index]
        if path is None:
            raise IndexError(f"row {index} has no sample of this modality")
        return self.read(path)


@dataclass(frozen=True)
class Decoded:
    """Raw samples preprocessed on demand, several at a time; zeros where `present` (n,) is False."""

    modality: Modality
    raw: RawColumn
    present: Tensor | None = None

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, indices: Tensor, /) -> Tensor:
        out = torch.zeros((len(indices), *self.modality.shape), dtype=torch.float32)
        rows = [(to, at) for to, at in enumerate(indices.tolist()) if self.present is None or bool(self.present[at])]

        def fill(row: tuple[int, int]) -> None:
            to, at = row
            out[to] = torch.from_numpy(self.modality.preprocess(self.raw[at]))

        # OpenCV and file reads release the interpreter lock: threads are enough.
        list(_pool().map(fill, rows))
        return out


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")


def column(
    modality: Modality,
    raw: RawColumn,
    present: Tensor | None = None,
    *,
    most_bytes: int = MOST_BYTES_IN_MEMORY,
) -> Tensor | Column:
    """The column of `modality`: a tensor in memory where that takes at most `most_bytes`, else read on demand."""
    decoded = Decoded(modality, raw, present)
    dtype = stored_dtype(modality)
    if len(raw) * math.prod(modality.shape) * dtype.itemsize > most_bytes:
        return decoded
    whole = torch.empty((len(raw), *modality.shape), dtype=dtype)
    for indices in torch.split(torch.arange(len(raw)), 256):
        whole[indices] = decoded[indices].to(dtype)
    return whole


def stored_dtype(modality: Modality) -> torch.dtype:
    """Half precision for values in 0..1, float32 for token numbers, which it would round."""
    return torch.float32 if modality.kind == "text" else torch.float16
