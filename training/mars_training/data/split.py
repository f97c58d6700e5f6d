"""A split: preprocessed samples of every modality in memory, with labels and groups.

Axes: n samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mars_edge.errors import UsageError
from mars_edge.modality import Modality


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a data set is, apart from its samples.

    Attributes:
        modalities: in fusion order.
        labels: class names; a label in a split is an index into them.
        positive_label: set for a live/spoof task: the bona fide class. The metric is then ACER, else accuracy.
        note: what a reader of any result must know, such as "simulated".
    """

    modalities: tuple[Modality, ...]
    labels: tuple[str, ...]
    positive_label: str | None
    note: str

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
        }

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Source:
        """The source that `to_dict` described."""
        return cls(
            modalities=tuple(Modality.from_dict(m) for m in table["modalities"]),
            labels=tuple(table["labels"]),
            positive_label=table["positive_label"],
            note=table["note"],
        )


@dataclass(frozen=True, kw_only=True)
class Split:
    """Samples of one side of a data set.

    Attributes:
        inputs: per modality a float16 tensor (n, *shape) of `Modality.preprocess` outputs. Half precision is
            exact to 1/4096 in 0..1 and lets a whole data set stay in memory.
        labels: (n,) int64.
        groups: (n,) int64 index into `group_names`: attack species, or speakers.
    """

    inputs: Mapping[str, Tensor]
    labels: Tensor
    groups: Tensor
    group_names: tuple[str, ...]

    def __post_init__(self) -> None:
        sizes = {name: len(x) for name, x in self.inputs.items()} | {"groups": len(self.groups)}
        wrong = [f"{name} has {size}" for name, size in sizes.items() if size != len(self.labels)]
        if wrong or not len(self.labels):
            raise UsageError(
                f"split of {len(self.labels)} labels is inconsistent or empty: {'; '.join(wrong) or 'empty'}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """The float32 inputs of the samples `indices`, channels last in memory."""
        return {name: _dense(x[indices]) for name, x in self.inputs.items()}

    def take(self, indices: Tensor) -> Split:
        """The split of only these samples, in this order."""
        return Split(
            inputs={name: x[indices] for name, x in self.inputs.items()},
            labels=self.labels[indices],
            groups=self.groups[indices],
            group_names=self.group_names,
        )

    @property
    def group_labels(self) -> NDArray[np.str_]:
        """The group's name of every sample, (n,)."""
        return np.array([self.group_names[i] for i in self.groups.tolist()], dtype=np.str_)


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
