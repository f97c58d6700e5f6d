"""Audio augmentation against plain loops, and the encoder block that keeps order in time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mars_edge.errors import UsageError
from mars_edge.modality import Modality
from mars_training.augment import add_noise, augment, resample
from mars_training.data.split import Batch
from mars_training.model.backbones import feature_channels
from mars_training.model.encoders.conv import ConvEncoder
from mars_training.recipe import AugmentRecipe, EncoderRecipe

AUDIO = Modality(name="audio", kind="audio", rate_hz=8000, window_s=0.2, mel_bands=8)
ALL = AugmentRecipe(
    audio_gain=0.1,
    audio_shift=2,
    audio_stretch=0.2,
    audio_warp=0.1,
    audio_bands=1.0,
    audio_colour=0.1,
    audio_noise=0.2,
    audio_band_mask=3,
    audio_frame_mask=3,
)


def batch(inputs: dict[str, torch.Tensor]) -> Batch:
    """A batch of these inputs with nothing missing."""
    size = len(next(iter(inputs.values())))
    return Batch(
        inputs=inputs,
        labels=torch.zeros(size, dtype=torch.long),
        present=torch.ones(size, len(inputs), dtype=torch.bool),
    )


def spectrograms(count: int) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.rand(count, *AUDIO.shape)


def read_at(row: list[float], place: float) -> float:
    """Linear interpolation in a list whose ends repeat."""
    place = min(max(place, 0.0), len(row) - 1.0)
    low = min(int(place), len(row) - 2)
    return row[low] * (1 - (place - low)) + row[low + 1] * (place - low)


def test_resampling_reads_where_the_reference_loop_reads() -> None:
    x = torch.rand(3, 1, 5, 7, dtype=torch.float64)
    scale, shift, pace = torch.tensor([[1.0, 1.2, 0.8], [0.0, -1.3, 0.6], [1.0, 1.25, 0.7]], dtype=torch.float64)
    found = resample(x, band_scale=scale, band_shift=shift, pace=pace)
    for b in range(3):
        for f in range(5):
            for t in range(7):
                at_time = [read_at(row, t * float(pace[b])) for row in x[b, 0].tolist()]
                expected = read_at(at_time, f * float(scale[b]) + float(shift[b]))
                assert float(found[b, 0, f, t]) == pytest.approx(expected, abs=1e-9)


def test_noise_adds_as_power_and_leaves_loud_places_alone() -> None:
    torch.manual_seed(0)
    level = torch.full((1, 1, 1, 1), 0.25)
    drowned = add_noise(torch.zeros(1, 1, 200, 200), level)
    mean_power = float((10.0 ** (8.0 * drowned)).mean())
    assert 10.0 * math.log10(mean_power - 1.0) == pytest.approx(20.0, abs=0.1)
    loud = torch.full((1, 1, 20, 20), 0.9)
    assert torch.allclose(add_noise(loud, level), loud, atol=1e-4)


@pytest.mark.parametrize(("key", "axis"), [("audio_band_mask", 2), ("audio_frame_mask", 3)])
def test_a_mask_hides_one_run_of_at_most_the_given_length(key: str, axis: int) -> None:
    x = spectrograms(200)
    found = augment(batch({"audio": x}), [AUDIO], AugmentRecipe(**{key: 3})).inputs["audio"]
    across = 5 - axis
    lengths = set()
    for before, after in zip(x, found, strict=True):
        changed = (before != after).all(dim=across - 1).flatten()
        places = torch.nonzero(changed).flatten()
        lengths.add(len(places))
        if len(places):
            assert int(places[-1] - places[0]) + 1 == len(places)
            hidden = after.index_select(axis - 1, places)
            assert torch.allclose(hidden, before.mean().expand_as(hidden))
        kept = torch.nonzero(~changed).flatten()
        assert torch.equal(before.index_select(axis - 1, kept), after.index_select(axis - 1, kept))
    assert lengths == {0, 1, 2, 3}


def test_colour_is_one_smooth_curve_over_the_bands_for_all_frames() -> None:
    x = torch.full((50, *AUDIO.shape), 0.5)
    offset = augment(batch({"audio": x}), [AUDIO], AugmentRecipe(audio_colour=0.1)).inputs["audio"] - x
    assert torch.equal(offset, offset[:, :, :, :1].expand_as(offset))
    assert 0.05 < float(offset.abs().max()) <= 0.1 + 1e-6
    # Five anchors 7/4 bands apart: between neighbours a line can climb at most its whole reach per 7/4 bands.
    assert float(offset.diff(dim=2).abs().max()) <= 0.2 * 4 / 7 + 1e-6


def test_all_audio_changes_together_keep_shape_and_range_and_differ_between_samples() -> None:
    x = spectrograms(1).expand(16, -1, -1, -1)
    found = augment(batch({"audio": x}), [AUDIO], ALL).inputs["audio"]
    assert found.shape == x.shape and found.dtype == x.dtype
    assert float(found.min()) >= 0.0 and float(found.max()) <= 1.0
    assert len({row.numpy().tobytes() for row in found}) == 16


def test_audio_is_untouched_by_default() -> None:
    x = spectrograms(4)
    assert torch.equal(augment(batch({"audio": x}), [AUDIO], AugmentRecipe()).inputs["audio"], x)


def test_a_span_block_sees_order_in_time_where_pooling_sees_little_of_it() -> None:
    torch.manual_seed(0)
    blocks = {"channels": (8, 8), "strides": (2, 2), "kernel": 1}
    x = torch.rand(1, 1, 8, 8)
    # Halves of whole strides: the maps before the last block are the same but for their order.
    swapped = torch.cat([x[..., 4:], x[..., :4]], dim=3)
    pooled = ConvEncoder((1, 8, 8), EncoderRecipe(pool=True, **blocks)).eval()
    spanned = ConvEncoder((1, 8, 8), EncoderRecipe(span=6, **blocks)).eval()
    assert torch.allclose(pooled(x), pooled(swapped), atol=1e-6)
    assert spanned(x).shape == (1, 6, 1, 1)
    assert not torch.allclose(spanned(x), spanned(swapped), atol=1e-3)


def test_a_span_block_fits_any_map_and_names_its_width() -> None:
    recipe = EncoderRecipe(channels=(4, 5), strides=(2, 2), span=7)
    assert feature_channels(recipe) == 7 and feature_channels(EncoderRecipe()) == 64
    encoder = ConvEncoder((1, 33, 61), recipe)
    assert encoder(torch.rand(2, 1, 33, 61)).shape == (2, 7, 1, 1)
    last = [m for m in encoder.modules() if isinstance(m, nn.Conv2d)][-1]
    assert last.kernel_size == (9, 16)


@pytest.mark.parametrize("wrong", [{"pool": True}, {"kind": "projection"}])
def test_a_span_is_refused_where_there_is_no_map_left(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError) as error:
        EncoderRecipe(span=8, **wrong)  # type: ignore[arg-type]
    assert str(error.value) == 'encoder has a span; it needs kind = "conv" and pool = false'
