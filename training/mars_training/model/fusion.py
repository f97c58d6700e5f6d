"""Fusion: the features of all modalities, concatenated, to the task representation z.

Axes: B batch, M modalities, C_m channels of a feature, d channels of z, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mars_edge.errors import UsageError
from mars_training.model.blocks import basic_stage, conv_bn_relu
from mars_training.recipe import ModelRecipe


class Fusion(nn.Module):
    """M maps (B, C_m, H, W) to z (B, d, H', W'): concatenate channels, then `block`.

    Attributes:
        widths: C_m of every modality, where the builder knew them: an export then gives each its share of the block.
    """

    def __init__(self, block: nn.Module, widths: Sequence[int] = ()) -> None:
        super().__init__()
        self.block = block
        self.widths = tuple(widths)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """z.

        Raises:
            UsageError: the maps differ in size.
        """
        sizes = [f"{f.shape[2]} x {f.shape[3]}" for f in features]
        if len(set(sizes)) > 1:
            raise UsageError(
                f"the encoders' maps are {', '.join(sizes)}; fusion needs one size: set pool = true in their tables"
            )
        z: Tensor = self.block(torch.cat(list(features), dim=1))
        return z


def fusion_of(inputs: int, recipe: ModelRecipe, widths: Sequence[int] = ()) -> Fusion:
    """The untrained fusion of features with `inputs` channels in all, of `widths` each.

    "resnet_stage" is a ResNet-18 stage: two basic blocks, the first with `fusion_stride`; it has no `fusion_kernel`.
    """
    if recipe.fusion_kind == "resnet_stage":
        return Fusion(basic_stage(inputs, (recipe.width, recipe.width), stride=recipe.fusion_stride), widths)
    block = conv_bn_relu(inputs, recipe.width, kernel=recipe.fusion_kernel, stride=recipe.fusion_stride)
    return Fusion(block, widths)
