"""What evaluation, selection and export may know of a model: the path that a device runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn


class Deployable(Protocol):
    """A model as a device runs it: encode what is there, then classify under a mask."""

    @property
    def encoders(self) -> nn.ModuleDict:
        """By modality name."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names in fusion order."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Every parameter that a device would carry."""

    def eval(self) -> object:
        """Switch to inference behaviour."""

    def encode_all(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Every modality's feature, in fusion order."""

    def classify(self, features: Sequence[Tensor], present: Tensor) -> Tensor:
        """Class logits (B, classes)."""
