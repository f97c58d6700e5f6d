"""The convolutional trunk of Inception v3, pooled: (B, C, H, W) to (B, 2048, 1, 1).

Axes: B batch, C channels, H height, W width.
Source: arXiv 1512.00567, table 1 and figures 5 to 7, with the channel counts of the published network (23.8 million
parameters with its 1000-class layer, 21.8 without). The auxiliary classifier is left out.
"""

from __future__ import annotations

from torch import nn

from mars_edge.errors import UsageError
from mars_edge.modality import Modality
from mars_training.model.blocks import Branches, MeanPool, conv_bn_relu
from mars_training.model.encoders.backbone import Backbone
from mars_training.recipe import EncoderRecipe

OUTPUTS = 2048
_LEAST_SIZE = 75  # a smaller image has no pixel left before the last stage


def _valid(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """A block without padding, as the network has where it shrinks the map."""
    block = conv_bn_relu(inputs, outputs, kernel=kernel, stride=stride)
    assert isinstance(block[0], nn.Conv2d)
    block[0].padding = (0, 0)
    return block


def _pooled(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1), conv_bn_relu(inputs, outputs, kernel=1))


def _shrinking_pool() -> nn.Module:
    return nn.MaxPool2d(3, stride=2)


def _stem(inputs: int) -> nn.Sequential:
    return nn.Sequential(
        _valid(inputs, 32, stride=2),
        _valid(32, 32),
        conv_bn_relu(32, 64),
        _shrinking_pool(),
        _valid(64, 80, kernel=1),
        _valid(80, 192),
        _shrinking_pool(),
    )


def _figure_5(inputs: int, pooled: int) -> Branches:
    """224 + `pooled` outputs; two 3x3 in a row see what a 5x5 sees."""
    return Branches(
        conv_bn_relu(inputs, 64, kernel=1),
        nn.Sequential(conv_bn_relu(inputs, 48, kernel=1), conv_bn_relu(48, 64, kernel=5)),
        nn.Sequential(conv_bn_relu(inputs, 64, kernel=1), conv_bn_relu(64, 96), conv_bn_relu(96, 96)),
        _pooled(inputs, pooled),
    )


def _first_reduction(inputs: int) -> Branches:
    return Branches(
        _valid(inputs, 384, stride=2),
        nn.Sequential(conv_bn_relu(inputs, 64, kernel=1), conv_bn_relu(64, 96), _valid(96, 96, stride=2)),
        _shrinking_pool(),
    )


def _figure_6(inputs: int, inner: int) -> Branches:
    """768 outputs; 1x7 and 7x1 in a row see what a 7x7 sees."""
    return Branches(
        conv_bn_relu(inputs, 192, kernel=1),
        nn.Sequential(
            conv_bn_relu(inputs, inner, kernel=1),
            conv_bn_relu(inner, inner, kernel=(1, 7)),
            conv_bn_relu(inner, 192, kernel=(7, 1)),
        ),
        nn.Sequential(
            conv_bn_relu(inputs, inner, kernel=1),
            conv_bn_relu(inner, inner, kernel=(7, 1)),
            conv_bn_relu(inner, inner, kernel=(1, 7)),
            conv_bn_relu(inner, inner, kernel=(7, 1)),
            conv_bn_relu(inner, 192, kernel=(1, 7)),
        ),
        _pooled(inputs, 192),
    )


def _second_reduction(inputs: int) -> Branches:
    return Branches(
        nn.Sequential(conv_bn_relu(inputs, 192, kernel=1), _valid(192, 320, stride=2)),
        nn.Sequential(
            conv_bn_relu(inputs, 192, kernel=1),
            conv_bn_relu(192, 192, kernel=(1, 7)),
            conv_bn_relu(192, 192, kernel=(7, 1)),
            _valid(192, 192, stride=2),
        ),
        _shrinking_pool(),
    )


def _figure_7(inputs: int) -> Branches:
    """2048 outputs; 1x3 beside 3x1 widens instead of deepening."""
    return Branches(
        conv_bn_relu(inputs, 320, kernel=1),
        nn.Sequential(conv_bn_relu(inputs, 384, kernel=1), _cross()),
        nn.Sequential(conv_bn_relu(inputs, 448, kernel=1), conv_bn_relu(448, 384), _cross()),
        _pooled(inputs, 192),
    )


def _cross() -> Branches:
    return Branches(conv_bn_relu(384, 384, kernel=(1, 3)), conv_bn_relu(384, 384, kernel=(3, 1)))


def trunk(inputs: int) -> nn.Sequential:
    """Images (B, inputs, H, W), at least 75 x 75 (299 x 299 in the source), to maps of 2048 channels.

    Weights start normal with deviation 0.1, and batch norm's epsilon is 0.001, as in the published network.
    """
    layers = nn.Sequential(
        _stem(inputs),
        *(_figure_5(width, pooled) for width, pooled in ((192, 32), (256, 64), (288, 64))),
        _first_reduction(288),
        *(_figure_6(768, inner) for inner in (128, 160, 160, 192)),
        _second_reduction(768),
        *(_figure_7(width) for width in (1280, 2048)),
    )
    for module in layers.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.1)
        elif isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3
    return layers


def _inception(modality: Modality, recipe: EncoderRecipe) -> nn.Module:
    if min(modality.shape[1:]) < _LEAST_SIZE:
        shown = " x ".join(map(str, modality.shape[1:]))
        raise UsageError(
            f"encoder kind 'inception' needs images of at least {_LEAST_SIZE} x {_LEAST_SIZE} pixels, "
            f"modality {modality.name!r} has {shown}"
        )
    return trunk(modality.shape[0]).append(MeanPool())


BACKBONES = {"inception": Backbone(build=_inception, outputs=lambda recipe: OUTPUTS)}
