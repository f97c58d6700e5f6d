"""DeepLabv3+: a ResNet of bottlenecks at output stride 16, pyramid pooling, and the encoder's half of the decoder.

Axes: B batch, C channels, H height, W width.
The map is the decoder's concatenation, `aspp` + `low` channels at stride 4. The decoder's two 3x3 convolutions are
the fusion (over all modalities' maps) and the experts, its 1x1 convolution and upsampling the head. With ResNet-101,
ASPP 256 and low-level 48 for each of four modalities, one 3x3 fusion to 256 and 16 experts of one 3x3 convolution, that
is 244.5 million parameters. Dropout, which implementations add to the pyramid, is left out.
Sources: arXiv 1802.02611, sections 3 and 4; multi-grid (1, 2, 4) in the last stage: arXiv 1706.05587, section 4.2.
"""

from __future__ import annotations

from torch import nn

from mars_edge.errors import UsageError
from mars_edge.modality import Modality
from mars_training.model.blocks import bottleneck, conv_bn_relu, he_initialised
from mars_training.model.encoders.backbone import Backbone, stage_depths
from mars_training.model.encoders.pyramid import Pyramid, PyramidEncoder
from mars_training.model.encoders.resnet import stem
from mars_training.recipe import EncoderRecipe

_RATES = (6, 12, 18)
_GRID = (1, 2, 4)


def _stage(inputs: int, width: int, depth: int, stride: int) -> nn.Sequential:
    blocks = [bottleneck(inputs, width, stride=stride), *(bottleneck(4 * width, width) for _ in range(depth - 1))]
    return nn.Sequential(*blocks)


def _dilated_stage(inputs: int, width: int, depth: int) -> nn.Sequential:
    """Stride 1 in place of 2, so dilation 2, times the multi-grid."""
    dilations = [2 * _GRID[min(at, len(_GRID) - 1)] for at in range(depth)]
    widths = [inputs, *[4 * width] * (depth - 1)]
    return nn.Sequential(*(bottleneck(i, width, dilation=d) for i, d in zip(widths, dilations, strict=True)))


def _deeplab(modality: Modality, recipe: EncoderRecipe) -> nn.Module:
    depths = stage_depths(recipe)
    if recipe.strides != (1, 2, 2, 1):
        raise UsageError(f"encoder kind 'deeplab' has strides {list(recipe.strides)}; they must be [1, 2, 2, 1]")
    a, b, c, d = recipe.channels
    encoder = PyramidEncoder(
        fine=nn.Sequential(stem(modality.shape[0], a), _stage(a, a, depths[0], 1)),
        coarse=nn.Sequential(
            _stage(4 * a, b, depths[1], 2), _stage(4 * b, c, depths[2], 2), _dilated_stage(4 * c, d, depths[3])
        ),
        pyramid=Pyramid(4 * d, recipe.aspp, _RATES),
        thin=conv_bn_relu(4 * a, recipe.low, kernel=1),
    )
    return he_initialised(encoder)


BACKBONES = {
    "deeplab": Backbone(
        build=_deeplab, reads=("image",), outputs=lambda recipe: recipe.aspp + recipe.low, stride=lambda recipe: 4
    )
}
