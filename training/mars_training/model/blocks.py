"""Convolution, batch norm, ReLU: the one block every stage is made of.

A convolution folds its batch norm in quantization-aware training and runs as one delegated kernel; a
linear layer does not fold. So every linear layer here is a 1x1 convolution and every feature is a map
(B, C, H, W), a vector being a map of 1x1 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def conv_bn_relu(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """(B, inputs, H, W) -> (B, outputs, ceil(H / stride), ceil(W / stride)), values at least 0, for an odd kernel."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def conv_stack(inputs: int, channels: Sequence[int], *, kernel: int, strides: Sequence[int]) -> nn.Sequential:
    """The chain of `conv_bn_relu` whose i-th block has `channels[i]` outputs and stride `strides[i]`."""
    widths = [inputs, *channels]
    pairs = zip(widths[:-1], widths[1:], strides, strict=True)
    return nn.Sequential(*(conv_bn_relu(i, o, kernel=kernel, stride=s) for i, o, s in pairs))
