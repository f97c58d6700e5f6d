"""A frozen principal-component projection of an image.

Axes: n images, B batch, C channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mars_edge.modality import Modality
from mars_training.model.blocks import conv_stack
from mars_training.model.encoders.backbone import Backbone
from mars_training.recipe import EncoderRecipe


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


def _projection(modality: Modality, recipe: EncoderRecipe) -> nn.Module:
    return ProjectionEncoder(modality.shape, recipe)


BACKBONES = {"projection": Backbone(build=_projection)}
