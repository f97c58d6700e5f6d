"""The baseline every claim is measured against: modality-dropout fusion without experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mars_training.model.mars import mask_features


class DropoutFusion(nn.Module):
    """Encoders, fusion and one wide stage, trained with modalities hidden at random.

    Same harness as MARS: a complete and an incomplete pass per step, the mask drawn uniformly.
    """

    def __init__(
        self, *, encoders: Mapping[str, nn.Module], fusion: nn.Module, expert: nn.Module, head: nn.Module
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.fusion = fusion
        self.expert = expert
        self.head = head

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names in fusion order."""
        return tuple(self.encoders.keys())

    def encode_all(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Every modality's feature, in fusion order."""
        return [module(inputs[name]) for name, module in self.encoders.items()]

    def classify(self, features: Sequence[Tensor], present: Tensor) -> Tensor:
        """Class logits (B, classes) from features already encoded, under the mask `present` (B, M)."""
        logits: Tensor = self.head(self.expert(self.fusion(mask_features(features, present))))
        return logits.float()

    def forward(self, inputs: Mapping[str, Tensor], present: Tensor) -> Tensor:
        """Class logits (B, classes) for any mask."""
        return self.classify(self.encode_all(inputs), present)

    def two_passes(self, inputs: Mapping[str, Tensor], partial: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits with everything present and under `partial`, from one stacked batch, as MARS does it."""
        features = [torch.cat([f, f]) for f in self.encode_all(inputs)]
        full, incomplete = self.classify(features, torch.cat([torch.ones_like(partial), partial])).chunk(2)
        return full, incomplete
