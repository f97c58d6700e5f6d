"""Encoders: from one modality's preprocessed tensor to its feature map f_m.

Axes: B batch, C channels, H height, W width (for audio: mel bands and frames).
To add a backbone: write an nn.Module (B, *shape) -> (B, C, H, W) here and name it in `encoder`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mars_edge.errors import UsageError
from mars_training.model.blocks import conv_stack
from mars_training.recipe import EncoderRecipe


class ConvEncoder(nn.Module):
    """A stack of convolution blocks, then the recipe's `pool` (mean) or `span` (whole-map block): (B, C, 1, 1)."""

    def __init__(self, shape: tuple[int, ...], recipe: EncoderRecipe) -> None:
        super().__init__()
        self.stack = conv_stack(shape[0], recipe.channels, kernel=recipe.kernel, strides=recipe.strides)
        self.pool = recipe.pool
        if recipe.span:
            self.stack.append(_span(shape, recipe))

    def forward(self, x: Tensor) -> Tensor:
        feature: Tensor = self.stack(x)
        return feature.mean((2, 3), keepdim=True) if self.pool else feature


def _span(shape: tuple[int, ...], recipe: EncoderRecipe) -> nn.Sequential:
    height, width = shape[1:]
    for stride in recipe.strides:
        height, width = -(-height // stride), -(-width // stride)
    return nn.Sequential(
        nn.Conv2d(recipe.channels[-1], recipe.span, (height, width), bias=False), nn.BatchNorm2d(recipe.span), nn.ReLU()
    )


class ProjectionEncoder(nn.Module):
    """A frozen principal-component projection of the whole image, then 1x1 convolution blocks: (B, C, 1, 1).

    The projection is a convolution as large as the image whose weights are buffers: it is exported with the
    encoder, and no optimiser sees it.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, shape: tuple[int, ...], recipe: EncoderRecipe) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(recipe.components, *shape))
        self.register_buffer("bias", torch.zeros(recipe.components))
        self.stack = conv_stack(recipe.components, recipe.channels, kernel=1, strides=recipe.strides)

    def fit(self, images: Tensor) -> None:
        """Set the projection to the leading components of `images` (n, *shape), each scaled to unit variance."""
        rows = images.flatten(1).double()
        mean = rows.mean(0)
        _, singular, directions = torch.linalg.svd(rows - mean, full_matrices=False)
        kept = self.weight.shape[0]
        deviation = singular[:kept] / (len(rows) - 1) ** 0.5
        basis = directions[:kept] / deviation[:, None]
        self.weight.copy_(basis.view_as(self.weight))
        self.bias.copy_(-(basis @ mean))

    def forward(self, x: Tensor) -> Tensor:
        feature: Tensor = self.stack(functional.conv2d(x, self.weight, self.bias))
        return feature


def encoder(shape: tuple[int, ...], recipe: EncoderRecipe) -> nn.Module:
    """The encoder a recipe describes for tensors of `shape` = (C, H, W).

    Raises:
        UsageError: the shape is not a map, or the recipe names an unknown kind.
    """
    if len(shape) != 3:
        raise UsageError(f"encoder kind {recipe.kind!r} reads tensors (C, H, W), this modality has shape {shape}")
    if recipe.kind == "conv":
        return ConvEncoder(shape, recipe)
    if recipe.kind == "projection":
        return ProjectionEncoder(shape, recipe)
    raise UsageError(f"unknown encoder kind {recipe.kind!r}; allowed: conv, projection")
