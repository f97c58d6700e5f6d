"""A split: preprocessed samples of every modality, in memory or read on demand, with labels and groups.

Axes: n samples, B batch, M modalities in fusion order, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mars_edge.errors import UsageError
from mars_edge.modality import Modality

Task = Literal["classification", "segmentation"]
IGNORED = 255
"""The label of a pixel that belongs to no class; it enters neither a loss nor a metric."""


class Column(Protocol):
    """The preprocessed samples of one modality, or the label maps: n rows of one shape; a tensor is one."""

    def __len__(self) -> int:
        """n."""

    def __getitem__(self, indices: Tensor, /) -> Tensor:
        """The rows `indices` (B,) as (B, *shape)."""


class RawColumn(Protocol):
    """The raw samples of one modality, as a sensor gives them: what faults are injected into."""

    def __len__(self) -> int:
        """n."""

    def __getitem__(self, index: int, /) -> NDArray[Any] | Any:
        """One raw sample, as `Modality.preprocess` takes it: an array, or a str for text."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a data set is, apart from its samples.

    Attributes:
        modalities: in fusion order.
        labels: class names; a label in a split is an index into them.
        positive_label: set for a live/spoof task: the bona fide class. The metric is then ACER, else accuracy.
        note: what a reader of any result must know, such as "simulated".
        task: one class per sample, or one per pixel (the metric is then mIoU).
    """

    modalities: tuple[Modality, ...]
    labels: tuple[str, ...]
    positive_label: str | None
    note: str
    task: Task = "classification"

    @property
    def names(self) -> tuple[str, ...]:
        """Modality names in fusion order."""
        return tuple(m.name for m in self.modalities)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` gives an equal source back."""
        return {
            "modalities": [m.to_dict() for m in self.modalities],
            "labels": list(self.labels),
            "positive_label": self.positive_label,
            "note": self.note,
            "task": self.task,
        }

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Source:
        """The source that `to_dict` described."""
        return cls(
            modalities=tuple(Modality.from_dict(m) for m in table["modalities"]),
            labels=tuple(table["labels"]),
            positive_label=table["positive_label"],
            note=table["note"],
            task=table.get("task", "classification"),
        )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one training step reads.

    Attributes:
        inputs: float32 (B, *shape) per modality, channels last in memory; exact zeros where a row lacks it.
        labels: (B,) int64, or (B, H, W) int64 with `IGNORED` for segmentation.
        present: (B, M) bool, False where the row's modality was never recorded. Most data is all True.
    """

    inputs: Mapping[str, Tensor]
    labels: Tensor
    present: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class Split:
    """Samples of one side of a data set.

    Attributes:
        inputs: per modality, in fusion order, n `Modality.preprocess` outputs: a tensor in memory, or a column that
            reads files on demand. In memory half precision will do: it is exact to 1/4096 in 0..1.
        labels: (n,) int64, or a column of (H, W) maps for segmentation.
        groups: (n,) int64 index into `group_names`: attack species, or speakers.
        present: (n, M) bool, which modalities a row has; None when every row has all.
        raw: the raw samples behind `inputs`, where the reader can give them.
    """

    inputs: Mapping[str, Tensor | Column]
    labels: Tensor | Column
    groups: Tensor
    group_names: tuple[str, ...]
    present: Tensor | None = None
    raw: Mapping[str, RawColumn] | None = None

    def __post_init__(self) -> None:
        sizes = {name: len(x) for name, x in self.inputs.items()} | {"groups": len(self.groups)}
        if self.present is not None:
            sizes["present"] = len(self.present)
        wrong = [f"{name} has {size}" for name, size in sizes.items() if size != len(self.labels)]
        if wrong or not len(self.labels):
            raise UsageError(
                f"split of {len(self.labels)} labels is inconsistent or empty: {'; '.join(wrong) or 'empty'}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def class_labels(self) -> Tensor:
        """The labels (n,) of a classification split."""
        assert isinstance(self.labels, Tensor) and self.labels.dim() == 1
        return self.labels

    @property
    def presence(self) -> Tensor:
        """`present` (n, M), all True where it is None."""
        return torch.ones(len(self), len(self.inputs), dtype=torch.bool) if self.present is None else self.present

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """The float32 inputs of the samples `indices`, channels last in memory."""
        return {name: _dense(x[indices]) for name, x in self.inputs.items()}

    def training_batch(self, indices: Tensor) -> Batch:
        """The samples `indices` (B,) with their labels and their presence."""
        return Batch(inputs=self.batch(indices), labels=self.labels[indices].long(), present=self.presence[indices])

    def take(self, indices: Tensor) -> Split:
        """The split of only these samples, in this order."""
        return Split(
            inputs={name: _taken(x, indices) for name, x in self.inputs.items()},
            labels=_taken(self.labels, indices),
            groups=self.groups[indices],
            group_names=self.group_names,
            present=None if self.present is None else self.present[indices],
            raw=None if self.raw is None else {name: _TakenRaw(x, indices) for name, x in self.raw.items()},
        )

    @property
    def group_labels(self) -> NDArray[np.str_]:
        """The group's name of every sample, (n,)."""
        return np.array([self.group_names[i] for i in self.groups.tolist()], dtype=np.str_)


@dataclass(frozen=True)
class _Taken:
    """Some rows of a column, in an order of their own."""

    column: Column
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, indices: Tensor, /) -> Tensor:
        return self.column[self.indices[indices]]


@dataclass(frozen=True)
class _TakenRaw:
    """Some raw samples, in an order of their own."""

    column: RawColumn
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> Any:
        return self.column[int(self.indices[index])]


def _taken(column: Tensor | Column, indices: Tensor) -> Tensor | Column:
    return column[indices] if isinstance(column, Tensor) else _Taken(column, indices)


def _dense(x: Tensor) -> Tensor:
    memory_format = torch.channels_last if x.dim() == 4 else torch.contiguous_format
    return x.float().contiguous(memory_format=memory_format)


def preprocess_all(modality: Modality, raw: Sequence[NDArray[Any]] | NDArray[Any]) -> Tensor:
    """Every raw sample through the one preprocessing a device runs: float16 (n, *shape)."""
    out = torch.empty((len(raw), *modality.shape), dtype=torch.float16)
    for row, sample in zip(out, raw, strict=True):
        row.copy_(torch.from_numpy(modality.preprocess(sample)))
    return out


@dataclass(frozen=True, kw_only=True)
class Data:
    """What `fit` trains on and selects by; test samples are not among it."""

    source: Source
    train: Split
    validation: Split
