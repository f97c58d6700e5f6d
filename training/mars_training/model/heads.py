"""Heads: from the mixed expert map to logits, one per sample or one per pixel.

Axes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class Head(nn.Module):
    """Class logits (B, classes) from an expert map (B, C, H, W): mean over pixels, one linear layer."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, classes)

    def forward(self, e: Tensor) -> Tensor:
        logits: Tensor = self.out(e.mean((2, 3)))
        return logits


class SegmentationHead(nn.Module):
    """Logits (B, classes, s H, s W) from an expert map (B, C, H, W): a 1x1 convolution, bilinear upsampling by s.

    The factor is fixed, not the size: training crops and whole frames have different sizes.
    """

    def __init__(self, width: int, classes: int, scale: int) -> None:
        super().__init__()
        self.out = nn.Conv2d(width, classes, 1)
        self.scale = scale

    def forward(self, e: Tensor) -> Tensor:
        size = (e.shape[2] * self.scale, e.shape[3] * self.scale)
        return functional.interpolate(self.out(e), size=size, mode="bilinear", align_corners=False)
