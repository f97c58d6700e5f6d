"""Encoders: from one modality's preprocessed tensor to its feature map f_m.

To add a backbone: a module in `mars_training.model.encoders` whose `BACKBONES` names it, and its line in `_MODULES`.
"""

from __future__ import annotations

import importlib

from torch import nn

from mars_edge.errors import UsageError
from mars_edge.modality import Kind, Modality
from mars_training.model.blocks import MeanPool
from mars_training.model.encoders.backbone import Backbone
from mars_training.recipe import EncoderRecipe

_MODULES = {
    "conv": "conv",
    "projection": "projection",
    "resnet": "resnet",
    "resnet_se": "resnet",
    "inception": "inception",
    "deeplab": "deeplab",
    "mobile": "mobile",
    "mobile_seg": "mobile",
    "sequence": "series",
    "vector": "series",
    "text_lstm": "text",
    "text_mean": "text",
}
"""By encoder kind, the module in `mars_training.model.encoders` that has it."""

KINDS = tuple(_MODULES)


def backbone(kind: str) -> Backbone:
    """What is known of an encoder kind.

    Raises:
        UsageError: there is no such kind.
    """
    if kind not in _MODULES:
        raise UsageError(f"unknown encoder kind {kind!r}; allowed: {', '.join(KINDS)}")
    module = importlib.import_module(f"mars_training.model.encoders.{_MODULES[kind]}")
    found: Backbone = module.BACKBONES[kind]
    return found


def kinds_for(modality_kind: Kind) -> tuple[str, ...]:
    """The encoder kinds that read modalities of `modality_kind`."""
    return tuple(kind for kind in KINDS if modality_kind in backbone(kind).reads)


def encoder(modality: Modality, recipe: EncoderRecipe) -> nn.Module:
    """The encoder a recipe describes: (B, *modality.shape) to a map (B, C, H, W).

    Raises:
        UsageError: an unknown kind, or one that does not read this kind of modality.
    """
    found = backbone(recipe.kind)
    if modality.kind not in found.reads:
        raise UsageError(
            f"encoder kind {recipe.kind!r} does not read {modality.kind}, which modality {modality.name!r} is; "
            f"set model.encoders.{modality.name}.kind to one of: {', '.join(kinds_for(modality.kind))}"
        )
    module = found.build(modality, recipe)
    # A "conv" encoder pools by itself: wrapped, its weights would have other names than in runs already trained.
    return nn.Sequential(module, MeanPool()) if recipe.pool and recipe.kind != "conv" else module


def feature_channels(recipe: EncoderRecipe) -> int:
    """Channels of the encoder's map."""
    return backbone(recipe.kind).outputs(recipe)


def feature_stride(recipe: EncoderRecipe) -> int:
    """Input pixels per pixel of the encoder's map."""
    return backbone(recipe.kind).stride(recipe)
