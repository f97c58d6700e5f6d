"""ResNets of basic blocks, whole or cut after a stage, with squeeze-and-excitation at the end or without.

Axes: B batch, C channels, H height, W width.
Sources: arXiv 1512.03385 (ResNet, table 1); arXiv 1812.00408, section 4 (each branch of a face anti-spoofing network
re-weights its channels by squeeze-and-excitation before the branches are concatenated).
"""

from __future__ import annotations

from torch import nn

from mars_edge.modality import Modality
from mars_training.model.blocks import SqueezeExcite, basic_stage, conv_bn_relu, he_initialised
from mars_training.model.encoders.backbone import Backbone, stage_depths, total_stride
from mars_training.recipe import EncoderRecipe


def stem(inputs: int, outputs: int) -> nn.Sequential:
    """(B, inputs, H, W) -> (B, outputs, ceil(H / 4), ceil(W / 4)): 7x7 convolution, 3x3 maximum, stride 2 each."""
    convolution = conv_bn_relu(inputs, outputs, kernel=7, stride=2)
    return nn.Sequential(*he_initialised(convolution), nn.MaxPool2d(3, stride=2, padding=1))


def trunk(inputs: int, recipe: EncoderRecipe) -> nn.Sequential:
    """The stem, then stages of `depths[i]` basic blocks of `channels[i]` outputs, the first of `strides[i]`."""
    layers = stem(inputs, recipe.channels[0])
    width = recipe.channels[0]
    for channels, stride, depth in zip(recipe.channels, recipe.strides, stage_depths(recipe), strict=True):
        layers.append(basic_stage(width, [channels] * depth, stride=stride))
        width = channels
    return layers


def _resnet(modality: Modality, recipe: EncoderRecipe) -> nn.Module:
    return trunk(modality.shape[0], recipe)


def _resnet_se(modality: Modality, recipe: EncoderRecipe) -> nn.Module:
    return trunk(modality.shape[0], recipe).append(SqueezeExcite(recipe.channels[-1], recipe.reduction))


def _stride(recipe: EncoderRecipe) -> int:
    return 4 * total_stride(recipe)


BACKBONES = {"resnet": Backbone(build=_resnet, stride=_stride), "resnet_se": Backbone(build=_resnet_se, stride=_stride)}
