"""Plain convolution blocks for images and spectrograms.

Axes: B batch, C channels, H height, W width (for audio: mel bands and frames).
"""

from __future__ import annotations

from torch import Tensor, nn

from mars_edge.modality import Modality
from mars_training.model.blocks import conv_stack
from mars_training.model.encoders.backbone import Backbone, last_channels
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


def _conv(modality: Modality, recipe: EncoderRecipe) -> nn.Module:
    return ConvEncoder(modality.shape, recipe)


BACKBONES = {"conv": Backbone(build=_conv, outputs=lambda recipe: recipe.span or last_channels(recipe))}
