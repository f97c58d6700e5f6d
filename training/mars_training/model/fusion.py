"""Fusion: the features of all modalities, concatenated, to the task representation z."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mars_training.model.blocks import conv_bn_relu


class Fusion(nn.Module):
    """M maps (B, C_m, H, W) to z (B, d, H', W'): concatenate channels, one convolution block."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int) -> None:
        super().__init__()
        self.block = conv_bn_relu(inputs, outputs, kernel=kernel, stride=stride)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        z: Tensor = self.block(torch.cat(list(features), dim=1))
        return z
