"""Experts: from the task representation z to an expert's map; all experts of a model have one form.

Axes: B batch, d channels of z, H height, W width. The recipe's `expert_channels` is one entry per layer or block; the
first strides, the later ones keep the size.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mars_training.model.blocks import basic_stage, conv_bn, conv_bn_relu, conv_stack
from mars_training.recipe import ExpertKind, ModelRecipe


def expert(kind: ExpertKind, recipe: ModelRecipe, channels: Sequence[int]) -> nn.Module:
    """One expert of a kind with one layer or block for each of `channels`: z (B, d, H, W) to a map."""
    if kind == "mlp":
        return _mlp(recipe.width, channels)
    if kind == "resnet_stage":
        return basic_stage(recipe.width, channels, stride=recipe.expert_stride)
    if kind == "low_rank":
        return _low_rank(recipe, channels[-1])
    strides = [recipe.expert_stride, *[1] * (len(channels) - 1)]
    return conv_stack(recipe.width, channels, kernel=recipe.expert_kernel, strides=strides)


def _mlp(width: int, channels: Sequence[int]) -> nn.Sequential:
    """Linear layers as 1x1 convolutions with bias, each followed by ReLU: without it one layer would be linear."""
    pairs = zip([width, *channels[:-1]], channels, strict=True)
    return nn.Sequential(*(nn.Sequential(nn.Conv2d(i, o, 1), nn.ReLU()) for i, o in pairs))


def _low_rank(recipe: ModelRecipe, outputs: int) -> nn.Sequential:
    """A correction through `expert_rank` channels, of any sign.

    Gates sum to one, so E_shared(z) + sum_j g_j delta_j(z) = sum_j g_j (E_shared + delta_j)(z): each expert is the
    shared one plus its own correction, and the shared part is computed once.
    """
    rank = recipe.expert_rank
    return nn.Sequential(
        conv_bn_relu(recipe.width, rank, kernel=recipe.expert_kernel, stride=recipe.expert_stride),
        conv_bn(rank, outputs, kernel=1),
    )
