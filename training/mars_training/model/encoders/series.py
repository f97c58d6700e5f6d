"""Sequences and vectors as maps of height 1, so that their convolutions are the ones that fold and quantize.

Axes: B batch, C channels, T time steps, L values.
"""

from __future__ import annotations

from torch import Tensor, nn

from mars_edge.modality import Modality
from mars_training.model.blocks import conv_bn_relu, conv_stack
from mars_training.model.encoders.backbone import Backbone
from mars_training.recipe import EncoderRecipe


class SequenceEncoder(nn.Module):
    """(B, C, T) -> (B, channels[-1], 1, T / strides): convolution blocks along time."""

    def __init__(self, inputs: int, recipe: EncoderRecipe) -> None:
        super().__init__()
        widths = [inputs, *recipe.channels]
        blocks = zip(widths[:-1], recipe.channels, recipe.strides, strict=True)
        self.stack = nn.Sequential(
            *(conv_bn_relu(i, o, kernel=(1, recipe.kernel), stride=(1, stride)) for i, o, stride in blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        feature: Tensor = self.stack(x.unsqueeze(2))
        return feature


class VectorEncoder(nn.Module):
    """(B, L) -> (B, channels[-1], 1, 1): 1x1 convolution blocks on a map of one pixel; strides mean nothing to it."""

    def __init__(self, inputs: int, recipe: EncoderRecipe) -> None:
        super().__init__()
        self.stack = conv_stack(inputs, recipe.channels, kernel=1, strides=recipe.strides)

    def forward(self, x: Tensor) -> Tensor:
        feature: Tensor = self.stack(x[:, :, None, None])
        return feature


def _sequence(modality: Modality, recipe: EncoderRecipe) -> nn.Module:
    return SequenceEncoder(modality.shape[0], recipe)


def _vector(modality: Modality, recipe: EncoderRecipe) -> nn.Module:
    return VectorEncoder(modality.shape[0], recipe)


BACKBONES = {
    "sequence": Backbone(build=_sequence, reads=("sequence",)),
    "vector": Backbone(build=_vector, reads=("vector",)),
}
