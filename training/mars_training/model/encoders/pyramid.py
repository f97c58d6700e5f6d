"""Atrous spatial pyramid pooling, and the decoder that joins it to a finer map.

Axes: B batch, C channels, H height, W width.
Source: arXiv 1802.02611 (DeepLabv3+), sections 3.1 and 3.2; the pyramid is that of arXiv 1706.05587, section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mars_training.model.blocks import MeanPool, conv_bn_relu


class Pyramid(nn.Module):
    """(B, C, H, W) -> (B, outputs, H, W): the map as it is, at wider and wider dilations, and as one mean; mixed.

    `separable` filters each channel alone where the source convolves all of them.
    """

    def __init__(self, inputs: int, outputs: int, rates: Sequence[int], *, separable: bool = False) -> None:
        super().__init__()
        dilated = _separable if separable else _dense
        self.branches = nn.ModuleList(
            [conv_bn_relu(inputs, outputs, kernel=1), *(dilated(inputs, outputs, rate) for rate in rates)]
        )
        self.whole = nn.Sequential(MeanPool(), conv_bn_relu(inputs, outputs, kernel=1))
        self.mix = conv_bn_relu(outputs * (len(rates) + 2), outputs, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        # One pixel upsampled bilinearly is that pixel everywhere.
        whole = self.whole(x).expand(-1, -1, x.shape[2], x.shape[3])
        mixed: Tensor = self.mix(torch.cat([*(branch(x) for branch in self.branches), whole], dim=1))
        return mixed


def _dense(inputs: int, outputs: int, rate: int) -> nn.Module:
    return conv_bn_relu(inputs, outputs, dilation=rate)


def _separable(inputs: int, outputs: int, rate: int) -> nn.Module:
    return nn.Sequential(
        conv_bn_relu(inputs, inputs, groups=inputs, dilation=rate), conv_bn_relu(inputs, outputs, kernel=1)
    )


class PyramidEncoder(nn.Module):
    """The pyramid's map upsampled to the fine one's size, concatenated with a thinned copy of it: (B, C, H / 4, W / 4).

    Attributes:
        fine: from the input to the map at stride 4.
        coarse: from there to the deepest map.
    """

    def __init__(self, *, fine: nn.Module, coarse: nn.Module, pyramid: nn.Module, thin: nn.Module) -> None:
        super().__init__()
        self.fine = fine
        self.coarse = coarse
        self.pyramid = pyramid
        self.thin = thin

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        deep = self.pyramid(self.coarse(fine))
        size = (fine.shape[2], fine.shape[3])
        return torch.cat([functional.interpolate(deep, size=size, mode="bilinear"), self.thin(fine)], dim=1)
