"""Inverted residuals of depthwise convolutions, for small devices; with a small pyramid for segmentation.

Axes: B batch, C channels, H height, W width (for audio: mel bands and frames).
Sources: arXiv 1801.04381 (MobileNetV2), sections 3 and 6.2 (a pyramid on its features).
"""

from __future__ import annotations

import math

from torch import nn

from mars_edge.errors import UsageError
from mars_edge.modality import Modality
from mars_training.model.blocks import conv_bn_relu, inverted_residual
from mars_training.model.encoders.backbone import Backbone
from mars_training.model.encoders.pyramid import Pyramid, PyramidEncoder
from mars_training.recipe import EncoderRecipe

_FINE = 4
# At stride 16 of a 512-pixel crop the map has 32 pixels: wider dilations would see padding alone.
_RATES = (3, 6)


def _blocks(inputs: int, recipe: EncoderRecipe) -> list[nn.Module]:
    """A full convolution of `channels[0]` outputs, then an inverted residual for each further entry."""
    blocks: list[nn.Module] = [conv_bn_relu(inputs, recipe.channels[0], kernel=recipe.kernel, stride=recipe.strides[0])]
    for i, o, stride in zip(recipe.channels[:-1], recipe.channels[1:], recipe.strides[1:], strict=True):
        blocks.append(inverted_residual(i, o, kernel=recipe.kernel, stride=stride, expansion=recipe.expansion))
    return blocks


def _mobile(modality: Modality, recipe: EncoderRecipe) -> nn.Module:
    return nn.Sequential(*_blocks(modality.shape[0], recipe))


def _mobile_seg(modality: Modality, recipe: EncoderRecipe) -> nn.Module:
    cut = _last_at_stride(recipe, _FINE) + 1
    blocks = _blocks(modality.shape[0], recipe)
    return PyramidEncoder(
        fine=nn.Sequential(*blocks[:cut]),
        coarse=nn.Sequential(*blocks[cut:]),
        pyramid=Pyramid(recipe.channels[-1], recipe.aspp, _RATES, separable=True),
        thin=conv_bn_relu(recipe.channels[cut - 1], recipe.low, kernel=1),
    )


def _last_at_stride(recipe: EncoderRecipe, stride: int) -> int:
    totals = [math.prod(recipe.strides[: at + 1]) for at in range(len(recipe.strides))]
    if stride not in totals or totals[-1] <= stride:
        raise UsageError(
            f"encoder kind 'mobile_seg' has strides {list(recipe.strides)}; "
            f"their running product must reach {stride} and go beyond it"
        )
    return len(totals) - 1 - totals[::-1].index(stride)


BACKBONES = {
    "mobile": Backbone(build=_mobile),
    "mobile_seg": Backbone(
        build=_mobile_seg,
        reads=("image",),
        outputs=lambda recipe: recipe.aspp + recipe.low,
        stride=lambda recipe: _FINE,
    ),
}
