"""Columns: one modality's samples, from raw to tensor, decoded at once or when a batch asks for them.

Axes: n samples, B batch, M modalities in fusion order, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from mars_edge.modality import Modality
from mars_training.data.split import Column, RawColumn

MOST_BYTES_IN_MEMORY = 4 * 2**30
"""What would take more than this is read from its files batch by batch."""
_DECODERS = 8
_CHUNK_BYTES = 64 * 2**20
Row = TypeVar("Row")


@dataclass(frozen=True)
class RawFiles:
    """Raw samples in files; `paths[i]` is None where a row lacks the modality."""

    paths: Sequence[Path | None]
    read: Callable[[Path], Any]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> Any:
        path = self.paths[index]
        if path is None:
            raise IndexError(f"row {index} has no sample of this modality")
        return self.read(path)


@dataclass(frozen=True)
class RawRows(Generic[Row]):
    """Raw samples made from one thing each: a title in memory, or a scene of several files."""

    rows: Sequence[Row]
    read: Callable[[Row], Any]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> Any:
        return self.read(self.rows[index])


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
    if len(raw) * _row_bytes(modality) > most_bytes:
        return decoded
    whole = torch.empty((len(raw), *modality.shape), dtype=dtype)
    chunk = min(max(_CHUNK_BYTES // (4 * math.prod(modality.shape)), _DECODERS), 256)
    for indices in torch.split(torch.arange(len(raw)), chunk):
        whole[indices] = decoded[indices].to(dtype)
    return whole


def columns(
    modalities: Sequence[Modality],
    raw: Mapping[str, RawColumn],
    present: Tensor | None = None,
    *,
    most_bytes: int = MOST_BYTES_IN_MEMORY,
) -> dict[str, Tensor | Column]:
    """The columns of a split by modality, in fusion order; small ones first go into memory while all fit.

    Args:
        modalities: M of them.
        raw: the raw samples of each.
        present: (n, M) bool, None where every row has all.
        most_bytes: of all columns that are kept in memory, together.
    """
    found: dict[str, Tensor | Column] = {}
    for m in sorted(modalities, key=_row_bytes):
        here = None if present is None else present[:, list(modalities).index(m)]
        found[m.name] = column(m, raw[m.name], here, most_bytes=most_bytes)
        if isinstance(found[m.name], Tensor):
            most_bytes -= len(raw[m.name]) * _row_bytes(m)
    return {m.name: found[m.name] for m in modalities}


def _row_bytes(modality: Modality) -> int:
    return math.prod(modality.shape) * stored_dtype(modality).itemsize


@dataclass(frozen=True)
class LabelMaps:
    """Label maps of one size (H, W) uint8, read on demand."""

    raw: RawColumn
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, indices: Tensor, /) -> Tensor:
        out = torch.empty((len(indices), *self.size), dtype=torch.uint8)

        def fill(row: tuple[int, int]) -> None:
            to, at = row
            out[to] = torch.from_numpy(self.raw[at])

        list(_pool().map(fill, enumerate(indices.tolist())))
        return out


def label_maps(raw: RawColumn, size: tuple[int, int], *, most_bytes: int = MOST_BYTES_IN_MEMORY) -> Tensor | Column:
    """The label maps (n, H, W) uint8: a tensor in memory where that takes at most `most_bytes`, else on demand."""
    maps = LabelMaps(raw, size)
    return maps if len(raw) * math.prod(size) > most_bytes else maps[torch.arange(len(raw))]


def stored_dtype(modality: Modality) -> torch.dtype:
    """Half precision for values in 0..1, float32 for token numbers, which it would round."""
    return torch.float32 if modality.kind == "text" else torch.float16
