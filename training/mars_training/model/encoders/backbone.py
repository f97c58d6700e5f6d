"""What an encoder kind tells the rest of the model about itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from mars_edge.errors import UsageError
from mars_edge.modality import Kind, Modality
from mars_training.recipe import EncoderRecipe


def last_channels(recipe: EncoderRecipe) -> int:
    """Channels of the last block."""
    return recipe.channels[-1]


def total_stride(recipe: EncoderRecipe) -> int:
    """Input pixels per pixel of the last block's map."""
    return math.prod(recipe.strides)


def stage_depths(recipe: EncoderRecipe) -> tuple[int, ...]:
    """Blocks of each stage.

    Raises:
        UsageError: the recipe gives none.
    """
    if not recipe.depths:
        raise UsageError(f"encoder kind {recipe.kind!r} needs depths: blocks per stage, such as [2, 2]")
    return recipe.depths


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """One encoder kind.

    Attributes:
        build: (modality, recipe) to the untrained module, from (B, *modality.shape) to a map (B, C, H, W).
        reads: the kinds of modality it can encode.
        outputs: C, from the recipe alone.
        stride: input pixels per pixel of the map, for segmentation.
    """

    build: Callable[[Modality, EncoderRecipe], nn.Module]
    reads: tuple[Kind, ...] = ("image", "audio")
    outputs: Callable[[EncoderRecipe], int] = last_channels
    stride: Callable[[EncoderRecipe], int] = total_stride
