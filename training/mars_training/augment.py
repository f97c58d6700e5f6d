"""Light augmentation of a training batch, drawn from torch's global generator.

Axes: B batch, M modalities in fusion order, C channels, H height, W width. Geometry is drawn once per sample
and applied to all its image modalities, and to its label map, which look at the same scene.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mars_edge.errors import UsageError
from mars_edge.modality import Modality
from mars_training import draws
from mars_training.data.split import Batch
from mars_training.recipe import AugmentRecipe

# A log-mel value of 1.0 is 80 dB above 0.0, which is eight powers of ten.
_DECADES = 8.0


@dataclass(frozen=True, kw_only=True)
class _Geometry:
    """What was drawn for each sample (B,): mirrored or not, the shift in whole pixels, the corner of the crop."""

    flipped: Tensor
    down: Tensor
    right: Tensor
    top: Tensor
    left: Tensor
    crop_px: int
    moves: bool
    """False where nothing of this is asked for."""

    def apply(self, x: Tensor) -> Tensor:
        """The images (B, C, H, W) mirrored, shifted, and then cut."""
        if not self.moves:
            return x
        rows, columns = _places(x.shape[-2:], self.flipped, self.down, self.right)
        if self.crop_px:
            window = torch.arange(self.crop_px)
            rows = rows.gather(1, self.top[:, None] + window)
            columns = columns.gather(1, self.left[:, None] + window)
        return _pick(x, rows, columns)


def augment(batch: Batch, modalities: Sequence[Modality], recipe: AugmentRecipe) -> Batch:
    """The batch with random geometry, light and sound; the range 0..1 and dtypes are kept, sizes but for a crop too.

    Vectors, sequences and text are untouched, and what a row lacks stays exact zeros.

    Raises:
        UsageError: the recipe names a modality or channel that is not there, or a crop that does not fit.
    """
    _check(recipe, modalities)
    geometry = _draw(batch, modalities, recipe)
    inputs = dict(batch.inputs)
    for at, m in enumerate(modalities):
        if m.kind == "image":
            inputs[m.name] = _silence(_see(inputs[m.name], m.name, geometry, recipe), batch.present[:, at])
        elif m.kind == "audio":
            inputs[m.name] = _silence(_retune(inputs[m.name], recipe), batch.present[:, at])
    maps = batch.labels.dim() == 3
    labels = geometry.apply(batch.labels[:, None])[:, 0] if maps else batch.labels
    return dataclasses.replace(batch, inputs=inputs, labels=labels)


def _check(recipe: AugmentRecipe, modalities: Sequence[Modality]) -> None:
    channels = {m.name: m.channels for m in modalities if m.kind == "image"}
    for name, wanted in recipe.flip_negates.items():
        if name not in channels:
            raise UsageError(
                f"augment.flip_negates names {name!r}; the image modalities are: {', '.join(channels) or 'none'}"
            )
        for channel in wanted:
            if channel not in range(channels[name]):
                raise UsageError(
                    f"augment.flip_negates.{name} names channel {channel}; allowed: 0 to {channels[name] - 1}"
                )


def _draw(batch: Batch, modalities: Sequence[Modality], recipe: AugmentRecipe) -> _Geometry:
    size = len(batch)
    flipped = draws.uniform(size) < (0.5 if recipe.flip else 0.0)
    down, right = draws.integers(-recipe.shift_px, recipe.shift_px + 1, size, 2).unbind(dim=1)
    top, left = _draw_corners(batch, modalities, recipe.crop_px)
    return _Geometry(
        flipped=flipped,
        down=down,
        right=right,
        top=top,
        left=left,
        crop_px=recipe.crop_px,
        moves=bool(recipe.flip or recipe.shift_px or recipe.crop_px),
    )


def _draw_corners(batch: Batch, modalities: Sequence[Modality], side: int) -> tuple[Tensor, Tensor]:
    size = len(batch)
    if not side:
        return torch.zeros(size, dtype=torch.long), torch.zeros(size, dtype=torch.long)
    height, width = _cut_from(batch, modalities, side)
    return draws.integers(0, height - side + 1, size), draws.integers(0, width - side + 1, size)


def _cut_from(batch: Batch, modalities: Sequence[Modality], side: int) -> tuple[int, int]:
    """Height and width of all images of the batch, and of its label maps, which `side` must fit into."""
    sizes = {m.name: tuple(batch.inputs[m.name].shape[-2:]) for m in modalities if m.kind == "image"}
    if batch.labels.dim() == 3:
        sizes["the label map"] = tuple(batch.labels.shape[-2:])
    if len(set(sizes.values())) != 1:
        shown = ", ".join(f"{name} {h} x {w}" for name, (h, w) in sizes.items())
        raise UsageError(f"augment.crop_px needs images of one size; they are: {shown or 'none'}")
    height, width = next(iter(sizes.values()))
    if side > min(height, width):
        raise UsageError(f"augment.crop_px is {side}; the images are {height} x {width}")
    return height, width


def _see(x: Tensor, name: str, geometry: _Geometry, recipe: AugmentRecipe) -> Tensor:
    moved = geometry.apply(x)
    if name in recipe.flip_negates:
        moved = _negate(moved, geometry.flipped, recipe.flip_negates[name])
    return _relight(moved, recipe) if name in recipe.photometric else moved


def _negate(x: Tensor, flipped: Tensor, channels: tuple[int, ...]) -> Tensor:
    """The image with 1 - v for v in the named channels of the mirrored samples: the sign turned, zero at 0.5."""
    named = torch.zeros(x.shape[1], dtype=torch.bool)
    named[list(channels)] = True
    return torch.where(flipped[:, None, None, None] & named[:, None, None], 1.0 - x, x)


def _silence(x: Tensor, present: Tensor) -> Tensor:
    """Exact zeros where a row lacks the modality: light and noise would have written on them."""
    return x if bool(present.all()) else torch.where(present.view(-1, *[1] * (x.dim() - 1)), x, 0.0)


def move(x: Tensor, flipped: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Each image mirrored where `flipped` (B,), then shifted by whole pixels; border pixels repeat."""
    return _pick(x, *_places(x.shape[-2:], flipped, down, right))


def _places(size: Sequence[int], flipped: Tensor, down: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The rows (B, H) and columns (B, W) of the original that are shown in place of 0, 1, 2, ..."""
    height, width = size
    rows = (torch.arange(height) - down[:, None]).clamp(0, height - 1)
    columns = (torch.arange(width) - right[:, None]).clamp(0, width - 1)
    return rows, torch.where(flipped[:, None], width - 1 - columns, columns)


def _pick(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    at = torch.arange(len(x))[:, None, None]
    # One gather for mirror, shift and crop; its result is channels last, as the convolutions want it.
    return x[at, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _uniform(x: Tensor, reach: float) -> Tensor:
    return (draws.uniform(len(x), *[1] * (x.dim() - 1)) * 2.0 - 1.0) * reach


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
    later = draws.integers(-recipe.audio_shift, recipe.audio_shift + 1, len(x))
    x = move(x, still.bool(), still, later)
    x = x + _uniform(x, recipe.audio_gain)
    if recipe.audio_colour:
        x = x + _colour(x, recipe.audio_colour)
    if recipe.audio_noise:
        x = add_noise(x, draws.uniform(len(x), 1, 1, 1) * recipe.audio_noise)
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
    anchors = (draws.uniform(len(x), 1, 5) * 2.0 - 1.0) * reach
    curve = functional.interpolate(anchors, size=x.shape[2], mode="linear", align_corners=True)
    return curve[:, :, :, None]


def add_noise(x: Tensor, level: Tensor) -> Tensor:
    """Log-mel values x plus noise of mean log-mel `level` (B, 1, 1, 1): the powers add, not the decibels."""
    # The power of a band of noise is about exponentially distributed, as that of any Gaussian signal.
    noise = 10.0 ** (_DECADES * level) * draws.exponential(*x.shape)
    return torch.log10(10.0 ** (_DECADES * x) + noise) / _DECADES


def _mask(x: Tensor, axis: int, longest: int) -> Tensor:
    """One random run of up to `longest` rows (axis 2) or columns (axis 3) of each sample set to its mean."""
    if not longest:
        return x
    size = x.shape[axis]
    length = draws.integers(0, longest + 1, len(x), 1)
    start = (draws.uniform(len(x), 1) * (size - length + 1)).long()
    at = torch.arange(size)
    hidden = (at >= start) & (at < start + length)
    shape = (len(x), 1, size, 1) if axis == 2 else (len(x), 1, 1, size)
    return torch.where(hidden.view(shape), x.mean((1, 2, 3), keepdim=True), x)
