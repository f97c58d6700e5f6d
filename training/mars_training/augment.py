"""Light augmentation of a training batch, drawn from torch's global generator.

Axes: B batch, C channels, H height, W width. Geometry is drawn once per sample and applied to all its
image modalities, which look at the same scene.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from mars_edge.modality import Modality
from mars_training.recipe import AugmentRecipe

# A log-mel value of 1.0 is 80 dB above 0.0, which is eight powers of ten.
_DECADES = 8.0


def augment(inputs: dict[str, Tensor], modalities: Sequence[Modality], recipe: AugmentRecipe) -> dict[str, Tensor]:
    """The batch with random geometry, light and sound; shapes, range 0..1 and dtype are kept."""
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
    """Another take of the same word: another throat, pace, room, microphone and moment."""
    if recipe.audio_warp or recipe.audio_bands or recipe.audio_stretch:
        x = resample(
            x,
            band_scale=1.0 + _uniform(x, recipe.audio_warp).flatten(),
            band_shift=_uniform(x, recipe.audio_bands).flatten(),
            pace=1.0 + _uniform(x, recipe.audio_stretch).flatten(),
        )
    still = torch.zeros(len(x), dtype=torch.long)
    later = torch.randint(-recipe.audio_shift, recipe.audio_shift + 1, (len(x),))
    x = move(x, still.bool(), still, later)
    x = x + _uniform(x, recipe.audio_gain)
    if recipe.audio_colour:
        x = x + _colour(x, recipe.audio_colour)
    if recipe.audio_noise:
        x = add_noise(x, torch.rand(len(x), 1, 1, 1) * recipe.audio_noise)
    x = x.clamp(0.0, 1.0)
    return _mask(_mask(x, 2, recipe.audio_band_mask), 3, recipe.audio_frame_mask)


def resample(x: Tensor, *, band_scale: Tensor, band_shift: Tensor, pace: Tensor) -> Tensor:
    """Spectrograms (B, 1, F, T) read, by linear interpolation, at band f * scale + shift and frame t * pace.

    All three factors have shape (B,); places outside repeat the border. `shift` is in bands.
    """
    bands, frames = x.shape[2:]
    f = torch.arange(bands) * band_scale[:, None] + band_shift[:, None]
    t = torch.arange(frames) * pace[:, None]
    rows = (2.0 * f / (bands - 1) - 1.0)[:, :, None].expand(-1, -1, frames)
    columns = (2.0 * t / (frames - 1) - 1.0)[:, None, :].expand(-1, bands, -1)
    grid = torch.stack([columns, rows], dim=3)
    return functional.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=True)


def _colour(x: Tensor, reach: float) -> Tensor:
    """A smooth random response over the bands: values at five bands, linear in between."""
    anchors = (torch.rand(len(x), 1, 5) * 2.0 - 1.0) * reach
    curve = functional.interpolate(anchors, size=x.shape[2], mode="linear", align_corners=True)
    return curve[:, :, :, None]


def add_noise(x: Tensor, level: Tensor) -> Tensor:
    """Log-mel values x plus noise of mean log-mel `level` (B, 1, 1, 1): the powers add, not the decibels."""
    # The power of a band of noise is about exponentially distributed, as that of any Gaussian signal.
    noise = 10.0 ** (_DECADES * level) * torch.empty_like(x).exponential_()
    return torch.log10(10.0 ** (_DECADES * x) + noise) / _DECADES


def _mask(x: Tensor, axis: int, longest: int) -> Tensor:
    """One random run of up to `longest` rows (axis 2) or columns (axis 3) of each sample set to its mean."""
    if not longest:
        return x
    size = x.shape[axis]
    length = torch.randint(0, longest + 1, (len(x), 1))
    start = (torch.rand(len(x), 1) * (size - length + 1)).long()
    at = torch.arange(size)
    hidden = (at >= start) & (at < start + length)
    shape = (len(x), 1, size, 1) if axis == 2 else (len(x), 1, 1, size)
    return torch.where(hidden.view(shape), x.mean((1, 2, 3), keepdim=True), x)
