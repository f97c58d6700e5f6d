"""Light augmentation of a training batch, drawn from torch's global generator.

Axes: B batch, C channels, H height, W width. Geometry is drawn once per sample and applied to all its
image modalities, which look at the same scene.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mars_edge.modality import Modality
from mars_training.recipe import AugmentRecipe


def augment(inputs: dict[str, Tensor], modalities: Sequence[Modality], recipe: AugmentRecipe) -> dict[str, Tensor]:
    """The batch with random geometry, light and loudness; shapes, range 0..1 and dtype are kept."""
    size = len(next(iter(inputs.values())))
    flipped = torch.rand(size) < (0.5 if recipe.flip else 0.0)
    offset = torch.randint(-recipe.shift_px, recipe.shift_px + 1, (2, size))
    out = dict(inputs)
    for m in modalities:
        if m.kind == "image":
            moved = move(inputs[m.name], flipped, offset[0], offset[1])
            out[m.name] = _relight(moved, recipe) if m.name in recipe.photometric else moved
        elif m.kind == "audio":
            out[m.name] = _retune(inputs[m.name], recipe)
    return out


def move(x: Tensor, flipped: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Each image mirrored where `flipped` (B,), then shifted by whole pixels; border pixels repeat."""
    batch, _, height, width = x.shape
    rows = (torch.arange(height) - down[:, None]).clamp(0, height - 1)
    columns = (torch.arange(width) - right[:, None]).clamp(0, width - 1)
    columns = torch.where(flipped[:, None], width - 1 - columns, columns)
    at = torch.arange(batch)[:, None, None]
    # One gather for mirror and shift; its result is channels last, as the convolutions want it.
    return x[at, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _uniform(x: Tensor, reach: float) -> Tensor:
    return (torch.rand(len(x), *[1] * (x.dim() - 1)) * 2.0 - 1.0) * reach


def _relight(x: Tensor, recipe: AugmentRecipe) -> Tensor:
    mean = x.mean((1, 2, 3), keepdim=True)
    scaled = (x - mean) * (1.0 + _uniform(x, recipe.contrast)) + mean
    return (scaled + _uniform(x, recipe.brightness)).clamp(0.0, 1.0)


def _retune(x: Tensor, recipe: AugmentRecipe) -> Tensor:
    still = torch.zeros(len(x), dtype=torch.long)
    later = torch.randint(-recipe.audio_shift, recipe.audio_shift + 1, (len(x),))
    louder = (x + _uniform(x, recipe.audio_gain)).clamp(0.0, 1.0)
    return move(louder, still.bool(), still, later)
