"""Preprocessing against independent references, and what it must never let through."""

from __future__ import annotations

import os
import subprocess
import sys
import unicodedata
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import resample, stft

from mars_edge.errors import UsageError
from mars_edge.modality import Modality
from mars_edge.preprocess import log_mel


def image(channels: int = 3, size: tuple[int, int] = (12, 16), dtype: Any = "uint8", high: float = 255) -> Modality:
    return Modality(name="cam", kind="image", channels=channels, size=size, dtype=dtype, range=(0, high))


DEPTH = image(1, (12, 16), "uint16", 4500)
VOICE = Modality(name="voice", kind="audio", rate_hz=8000, window_s=0.5, mel_bands=20)
MOTION = Modality(name="motion", kind="sequence", channels=3, length=50, range=(-2, 2))
CLIMATE = Modality(name="climate", kind="vector", length=4, range=(-10, 30))
TITLE = Modality(name="title", kind="text", length=6, vocabulary=1000)


def random_image(modality: Modality, height: int, width: int, seed: int = 0) -> NDArray[Any]:
    high = {"uint8": 255, "uint16": 65535, "float32": 1}[modality.dtype]
    values = np.random.default_rng(seed).random((height, width, modality.channels)) * high
    return values.astype(modality.dtype)


# --- every kind


SAMPLES: list[tuple[Modality, NDArray[Any]]] = [
    (image(), random_image(image(), 48, 64)),
    (image(2, dtype="float32", high=1), random_image(image(2, dtype="float32"), 48, 64)),
    (image(16, dtype="float32", high=1), random_image(image(16, dtype="float32"), 30, 16)),
    (DEPTH, random_image(DEPTH, 48, 64)),
    (VOICE, np.sin(np.arange(9000) / 7).astype(np.float32)),
    (MOTION, np.random.default_rng(0).normal(0, 2, (77, 3)).astype(np.float32)),
    (CLIMATE, np.array([-20, 0, 21.5, 99], dtype=np.float32)),
]


@pytest.mark.parametrize(("modality", "raw"), SAMPLES)
def test_a_tensor_is_contiguous_float32_in_0_to_1_and_does_not_touch_its_sample(
    modality: Modality, raw: NDArray[Any]
) -> None:
    before = raw.copy()
    tensor = modality.preprocess(raw)
    assert tensor.shape == modality.shape
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous
    assert tensor.flags.writeable
    assert tensor.min() >= 0.0
    assert tensor.max() <= 1.0
    assert np.array_equal(raw, before)
    tensor += 1.0
    assert np.array_equal(raw, before), "the tensor shares memory with the sample"


@pytest.mark.parametrize(("modality", "raw"), SAMPLES)
def test_memory_layout_and_earlier_samples_do_not_change_a_tensor(modality: Modality, raw: NDArray[Any]) -> None:
    alone = modality.preprocess(raw)
    modality.preprocess(np.zeros_like(raw))
    read_only = np.asfortranarray(raw)
    read_only.flags.writeable = False
    assert np.array_equal(modality.preprocess(read_only), alone)
    strided = np.repeat(raw, 2, axis=0)[::2]
    assert np.array_equal(modality.preprocess(strided), alone)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("modality", "raw"), [s for s in SAMPLES if s[1].dtype == np.float32])
def test_a_value_that_is_not_finite_is_refused_and_named(modality: Modality, raw: NDArray[Any], value: float) -> None:
    spoilt = raw.copy()
    spoilt.flat[1] = spoilt.flat[-1] = value
    with pytest.raises(UsageError) as caught:
        modality.preprocess(spoilt)
    assert str(caught.value) == f"{modality.name}: 2 of {raw.size} values are not finite"


NARROW = Modality(name="narrow", kind="vector", length=4, range=(0, 1e-3))


@pytest.mark.parametrize(
    ("modality", "raw"),
    [*(s for s in SAMPLES if s[1].dtype == np.float32), (NARROW, np.array([1, -1, 1, -1], dtype=np.float32))],
)
def test_the_largest_floats_are_clipped_without_a_warning(modality: Modality, raw: NDArray[Any]) -> None:
    limits = np.finfo(np.float32)
    huge = np.where(np.random.default_rng(0).random(raw.shape) < 0.5, limits.max, limits.min).astype(np.float32)
    tensor = modality.preprocess(huge)
    assert np.isfinite(tensor).all()
    assert tensor.max() <= 1.0


WRONG_SAMPLES: list[tuple[Modality, NDArray[Any], str]] = [
    (image(), np.zeros((4, 4), np.uint8), "cam: image has shape (4, 4), expected (H, W, 3)"),
    (image(), np.zeros((4, 4, 4), np.uint8), "cam: image has shape (4, 4, 4), expected (H, W, 3)"),
    (image(), np.zeros((3, 4, 5), np.uint8), "cam: image has shape (3, 4, 5), expected (H, W, 3)"),
    (image(), np.zeros((0, 4, 3), np.uint8), "cam: image has shape (0, 4, 3), expected (H, W, 3)"),
    (image(), np.zeros((1, 4, 4, 3), np.uint8), "cam: image has shape (1, 4, 4, 3), expected (H, W, 3)"),
    (image(), np.zeros((4, 4, 3), np.float32), "cam: sample is float32, expected uint8"),
    (DEPTH, np.zeros((4, 4), np.uint8), "cam: sample is uint8, expected uint16"),
    (DEPTH, np.zeros((4, 4, 3), np.uint16), "cam: image has shape (4, 4, 3), expected (H, W, 1) or (H, W)"),
    (VOICE, np.zeros((2, 9), np.float32), "voice: audio has shape (2, 9), expected (T,) mono samples, T >= 1"),
    (VOICE, np.zeros(0, np.float32), "voice: audio has shape (0,), expected (T,) mono samples, T >= 1"),
    (VOICE, np.zeros(9, np.int16), "voice: audio is int16, expected float32 in -1..1"),
    (VOICE, np.zeros(9, np.float64), "voice: audio is float64, expected float32 in -1..1"),
    (MOTION, np.zeros((3, 50), np.float32), "motion: sequence has shape (3, 50), expected (T, 3), T >= 1"),
    (MOTION, np.zeros((0, 3), np.float32), "motion: sequence has shape (0, 3), expected (T, 3), T >= 1"),
    (MOTION, np.zeros(50, np.float32), "motion: sequence has shape (50,), expected (T, 3), T >= 1"),
    (MOTION, np.zeros((50, 3)), "motion: sample is float64, expected float32"),
    (CLIMATE, np.zeros(5, np.float32), "climate: vector has shape (5,), expected (4,)"),
    (CLIMATE, np.zeros((1, 4), np.float32), "climate: vector has shape (1, 4), expected (4,)"),
    (CLIMATE, np.zeros(4, np.int64), "climate: sample is int64, expected float32"),
]


@pytest.mark.parametrize(("modality", "raw", "message"), WRONG_SAMPLES)
def test_a_sample_of_another_form_is_refused_with_both_forms(
    modality: Modality, raw: NDArray[Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        modality.preprocess(raw)
    assert str(caught.value) == message


@pytest.mark.parametrize("modality", [image(), DEPTH, VOICE, MOTION, CLIMATE])
@pytest.mark.parametrize(("raw", "kind"), [("a title", "str"), ([1.0, 2.0], "list"), (None, "NoneType"), (3, "int")])
def test_only_text_is_given_as_something_else_than_an_array(modality: Modality, raw: Any, kind: str) -> None:
    with pytest.raises(UsageError) as caught:
        modality.preprocess(raw)
    assert str(caught.value) == f"{modality.name}: sample is of type {kind}, expected an array"


# --- image


def test_an_image_of_the_right_size_is_only_scaled_and_put_channels_first() -> None:
    modality = image()
    raw = random_image(modality, 12, 16)
    tensor = modality.preprocess(raw)
    for c in range(3):
        for y in range(12):
            for x in range(16):
                assert tensor[c, y, x] == pytest.approx(raw[y, x, c] / 255, abs=1e-7)


def test_all_16_bits_of_a_depth_map_are_kept() -> None:
    modality = image(1, (1, 16), "uint16", 65535)
    raw = np.arange(1, 17, dtype=np.uint16)[None] + 4000
    assert len(np.unique(modality.preprocess(raw))) == 16


def test_values_outside_the_range_are_clipped_and_inside_are_linear() -> None:
    modality = Modality(name="t", kind="image", channels=1, size=(1, 5), dtype="uint16", range=(500, 1500))
    raw = np.array([[100, 500, 750, 1500, 9000]], dtype=np.uint16)
    assert modality.preprocess(raw).ravel() == pytest.approx([0, 0, 0.25, 1, 1])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", range(1, 17))
def test_up_to_16_channels_are_resized_as_each_would_be_alone(channels: int, dtype: str) -> None:
    modality = image(channels, dtype=dtype, high={"uint8": 255, "uint16": 65535, "float32": 1}[dtype])
    alone = Modality.from_dict({**modality.to_dict(), "channels": 1})
    for height, width in ((48, 64), (5, 7), (48, 8), (48, 16), (12, 64)):
        raw = random_image(modality, height, width)
        tensor = modality.preprocess(raw)
        for c in range(channels):
            single = alone.preprocess(np.ascontiguousarray(raw[:, :, c]))[0]
            assert np.abs(tensor[c] - single).max() <= 1.01 / 255 * (dtype == "uint8") + 1e-4


def test_shrinking_by_a_whole_factor_averages_each_block() -> None:
    modality = image(2, (4, 5), "float32", 1.0)
    raw = random_image(modality, 12, 10)
    tensor = modality.preprocess(raw)
    for y in range(4):
        for x in range(5):
            block = raw[3 * y : 3 * y + 3, 2 * x : 2 * x + 2]
            assert tensor[:, y, x] == pytest.approx(block.mean(axis=(0, 1)), abs=1e-6)


def depth_scene(height: int, width: int) -> NDArray[np.float64]:
    """A rounded head 0.5 m away before a wall at 1.5 m, in millimetres."""
    y, x = np.mgrid[0:height, 0:width]
    across, down = (x + 0.5) / width - 0.5, ((y + 0.5) / height - 0.5) * 0.75
    inside = 1.0 - (across / 0.16) ** 2 - (down / 0.22) ** 2
    return np.where(inside > 0, 600 - 80 * np.sqrt(np.maximum(inside, 0)), 1500.0)


def recorded_depth(height: int, width: int) -> NDArray[np.uint16]:
    """The scene as a depth camera gives it: noise, 10 % holes, no measurement along the silhouette."""
    rng = np.random.default_rng(0)
    truth = depth_scene(height, width)
    silhouette = (np.abs(cv2.Laplacian(truth, cv2.CV_64F)) > 100).astype(np.uint8)
    lost = cv2.dilate(silhouette, np.ones((5, 5), np.uint8)) > 0
    lost |= np.kron(rng.random((height // 10, width // 10)) < 0.1, np.ones((10, 10))) > 0
    return np.where(lost, 0, truth + rng.normal(0, 6, truth.shape)).round().astype(np.uint16)


def depth_errors_mm(resized: NDArray[Any]) -> NDArray[np.float64]:
    measured = resized > 0
    errors: NDArray[np.float64] = np.abs(resized[measured] - depth_scene(112, 112)[measured])
    return errors


def test_resized_depth_holds_no_distance_that_is_not_in_the_scene() -> None:
    modality = image(1, (112, 112), "uint16", 65535)
    raw = recorded_depth(480, 640)
    ours = depth_errors_mm(modality.preprocess(raw)[0].astype(np.float64) * 65535)
    plain_area = depth_errors_mm(cv2.resize(raw, (112, 112), interpolation=cv2.INTER_AREA).astype(np.float64))
    nearest = depth_errors_mm(cv2.resize(raw, (112, 112), interpolation=cv2.INTER_NEAREST).astype(np.float64))
    assert np.mean(plain_area > 30) > 0.1, "the trap this test is about"
    assert np.mean(ours > 30) < 0.001
    assert ours.mean() < nearest.mean() / 3, "averaging keeps the noise lower than picking one pixel"
    assert ours.size > 0.88 * 112 * 112, "few measurements are given up"


def test_a_block_of_depth_is_the_mean_of_what_was_measured_or_a_hole_under_half() -> None:
    modality = image(1, (1, 3), "uint16", 65535)
    raw = np.array([[1000, 1010, 1000, 0, 0, 0], [1020, 1030, 1010, 0, 1000, 0]], dtype=np.uint16)
    assert modality.preprocess(raw).ravel() * 65535 == pytest.approx([1015, 1005, 0], abs=0.01)


def test_growing_a_depth_map_invents_no_distance_either() -> None:
    modality = image(1, (40, 40), "uint16", 65535)
    raw = np.full((5, 5), 2000, dtype=np.uint16)
    raw[2, 2] = raw[0, 4] = 0
    values = set(np.round(modality.preprocess(raw).ravel() * 65535).astype(int).tolist())
    assert values == {0, 2000}


# --- audio


def reference_log_mel(modality: Modality, window: NDArray[np.float32]) -> NDArray[np.float64]:
    """scipy's short-time transform, then mel triangles and decibels in plain loops."""
    frame, rate_hz = modality.frame_samples, modality.rate_hz
    _, _, spectrum = stft(
        window.astype(np.float64),
        fs=rate_hz,
        window="hann",
        nperseg=frame,
        noverlap=frame - modality.hop_samples,
        boundary=None,
        padded=False,
        scaling="spectrum",
    )
    power = np.abs(spectrum) ** 2

    def to_mel(hz: float) -> float:
        return 1127.0 * float(np.log(1.0 + hz / 700.0))

    count = modality.mel_bands
    edges = [i * to_mel(rate_hz / 2) / (count + 1) for i in range(count + 2)]
    centres_hz = [700.0 * (float(np.exp(mel / 1127.0)) - 1.0) for mel in edges]
    out = np.zeros((count, power.shape[1]))
    for band in range(count):
        low, centre, high = centres_hz[band : band + 3]
        for t in range(power.shape[1]):
            total = 0.0
            for k in range(power.shape[0]):
                hz = k * rate_hz / frame
                if low < hz <= centre:
                    total += power[k, t] * (hz - low) / (centre - low)
                elif centre < hz < high:
                    total += power[k, t] * (high - hz) / (high - centre)
            decibels = 10 * np.log10(total) if total > 1e-12 else -120.0
            out[band, t] = min(1.0, max(0.0, (decibels + 80.0) / 80.0))
    return out


@pytest.mark.parametrize(
    ("rate_hz", "bands", "frame_s"), [(8000, 20, 0.032), (16000, 40, 0.025), (8000, 7, 0.0301), (11025, 64, 0.02)]
)
def test_log_mel_equals_scipys_transform_with_plain_loop_filters(rate_hz: float, bands: int, frame_s: float) -> None:
    modality = Modality(name="v", kind="audio", rate_hz=rate_hz, window_s=0.2, mel_bands=bands, frame_s=frame_s)
    rng = np.random.default_rng(0)
    t = np.arange(modality.window_samples) / rate_hz
    chirp = 0.6 * np.sin(2 * np.pi * (200 + 8000 * t) * t) + rng.normal(0, 0.01, t.size)
    window = (chirp * np.linspace(1, 0.001, t.size)).astype(np.float32)
    reference = reference_log_mel(modality, window)
    assert np.abs(log_mel(modality, window) - reference).max() < 2e-5
    assert reference.std() > 0.05


def test_a_full_scale_sine_peaks_at_minus_6_decibels_and_silence_is_0() -> None:
    modality = Modality(name="v", kind="audio", rate_hz=8000, window_s=0.5, mel_bands=20)
    bin_hz = 8000 / modality.frame_samples
    centres_hz = 700 * (10 ** (np.arange(1, 21) / 21 * np.log10(1 + 4000 / 700)) - 1)
    band = 10
    sine = np.sin(2 * np.pi * round(centres_hz[band] / bin_hz) * bin_hz * np.arange(4000) / 8000)
    tensor = modality.preprocess(sine.astype(np.float32))[0]
    assert tensor.mean(axis=1).argmax() == band
    assert tensor.max() * 80 - 80 == pytest.approx(-6.02, abs=1.5)
    assert not modality.preprocess(np.zeros(4000, np.float32)).any()


def test_the_newest_window_counts_and_a_short_signal_is_padded_at_its_end() -> None:
    rng = np.random.default_rng(0)
    long = rng.normal(0, 0.1, 9000).astype(np.float32)
    window = VOICE.window_samples
    assert np.array_equal(VOICE.preprocess(long), VOICE.preprocess(long[-window:]))
    short = long[:1000]
    padded = np.concatenate([short, np.zeros(window - 1000, np.float32)])
    assert np.array_equal(VOICE.preprocess(short), VOICE.preprocess(padded))


@pytest.mark.parametrize("chunk", [1, 80, 333, 4000])
def test_audio_put_together_from_chunks_gives_the_same_tensor(chunk: int) -> None:
    signal = np.random.default_rng(1).normal(0, 0.1, 4000).astype(np.float32)
    joined = np.concatenate([signal[i : i + chunk] for i in range(0, signal.size, chunk)])
    assert np.array_equal(VOICE.preprocess(joined), VOICE.preprocess(signal))


# --- sequence and vector


@pytest.mark.parametrize("rows", [1, 2, 17, 50, 51, 400])
def test_rows_are_resampled_linearly_with_both_ends_kept(rows: int) -> None:
    raw = np.random.default_rng(0).uniform(-1.9, 1.9, (rows, 3)).astype(np.float32)
    tensor = MOTION.preprocess(raw)
    for c in range(3):
        for i in range(50):
            at = i * (rows - 1) / 49
            before = min(int(at), rows - 1)
            after = min(before + 1, rows - 1)
            value = raw[before, c] + (raw[after, c] - raw[before, c]) * (at - before)
            assert tensor[c, i] == pytest.approx((value + 2) / 4, abs=1e-5)
    assert tensor[:, 0] == pytest.approx((raw[0] + 2) / 4, abs=1e-6)
    assert tensor[:, -1] == pytest.approx((raw[-1] + 2) / 4 if rows > 1 else tensor[:, 0], abs=1e-6)


def test_resampled_slow_motion_stays_near_the_band_limited_signal() -> None:
    t = np.arange(200) / 200
    raw = np.stack([np.sin(2 * np.pi * k * t) for k in (1, 2, 3)], axis=1).astype(np.float32)
    tensor = MOTION.preprocess(raw)
    at = np.linspace(0, 199, 50) / 200
    fine = resample(raw[:, 1], 20_000)
    assert np.abs(tensor[1] * 4 - 2 - np.interp(at, np.arange(20_000) / 20_000, fine)).max() < 0.01


def test_a_single_row_is_held_for_the_whole_length() -> None:
    tensor = MOTION.preprocess(np.array([[0.0, 1.0, -2.0]], dtype=np.float32))
    assert np.array_equal(tensor, np.repeat([[0.5], [0.75], [0.0]], 50, axis=1).astype(np.float32))


@pytest.mark.parametrize(("low", "high"), [(1.05, 6.4), (-9.22, -7.43), (14.58, 19.6)])
def test_rounding_never_lifts_a_value_above_1(low: float, high: float) -> None:
    modality = Modality(name="v", kind="vector", length=2, range=(low, high))
    factor = np.float32(1.0 / (high - low))
    assert (np.float32(high) - np.float32(low)) * factor > 1.0, "the trap this test is about"
    assert modality.preprocess(np.array([low, high], dtype=np.float32)).tolist() == [0.0, 1.0]


def test_a_range_of_numpy_numbers_still_gives_float32() -> None:
    modality = Modality(name="v", kind="vector", length=1, range=(np.float64(0), np.float64(2)))
    assert modality.preprocess(np.ones(1, dtype=np.float32)).dtype == np.float32


def test_integers_are_scaled_as_floats() -> None:
    counts = Modality(name="c", kind="vector", length=3, dtype="uint16", range=(0, 1000))
    assert counts.preprocess(np.array([0, 250, 65535], dtype=np.uint16)) == pytest.approx([0, 0.25, 1])


def test_a_vector_is_scaled_by_its_range_and_clipped() -> None:
    raw = np.array([-20, -10, 10, 99], dtype=np.float32)
    assert CLIMATE.preprocess(raw).tolist() == [0.0, 0.0, 0.5, 1.0]


# --- text


def reference_words(text: str) -> list[str]:
    words = [""]
    for character in unicodedata.normalize("NFKC", text).lower():
        if character.isalnum():
            words[-1] += character
        elif words[-1]:
            words.append("")
    return [word for word in words if word]


TEXTS = [
    "Pasta alla Norma, the easy way",
    "one",
    "snake_case and-dash/slash\ttab\nline",
    "CR\u00c8ME br\u00fbl\u00e9e \u2013 \u0440\u0435\u0446\u0435\u043f\u0442 42 \u6599\u7406",
    "ﬁne ½ cup ＦＵＬＬ width",
    "a a a a a a a a a",
]


@pytest.mark.parametrize("text", TEXTS)
def test_words_and_word_pairs_are_numbered_as_in_a_plain_loop(text: str) -> None:
    words = reference_words(text)[:6]
    expected = np.zeros((2, 6))
    for at, word in enumerate(words):
        before = words[at - 1] if at else ""
        expected[0, at] = 1 + zlib.crc32(f"1 {word}".encode()) % 999
        expected[1, at] = 1 + zlib.crc32(f"2 {before} {word}".encode()) % 999
    tensor = TITLE.preprocess(text)
    assert np.array_equal(tensor, expected)
    assert tensor.dtype == np.float32 and tensor.flags.c_contiguous and tensor.flags.writeable
    assert (tensor[:, : len(words)] >= 1).all() and not tensor[:, len(words) :].any()


def test_case_punctuation_and_compatible_characters_do_not_change_a_text() -> None:
    plain = TITLE.preprocess("fine pasta 1 2 cup")
    for text in ("FINE, Pasta: (1/2) cup!", "  ﬁne_pasta ½ cup", np.str_("fine pasta 1 2 cup")):
        assert np.array_equal(TITLE.preprocess(text), plain)


def test_order_shows_in_the_pairs_and_only_there() -> None:
    one, other = TITLE.preprocess("dog bites man"), TITLE.preprocess("man bites dog")
    assert set(one[0]) == set(other[0]) and set(one[1]) != set(other[1])


def test_a_word_and_a_pair_of_one_word_have_different_numbers() -> None:
    wide = Modality(name="title", kind="text", length=1, vocabulary=2**24)
    tensor = wide.preprocess("pasta")
    assert tensor[0, 0] != tensor[1, 0]


def test_numbers_are_spread_over_the_whole_vocabulary_and_0_is_no_word() -> None:
    modality = Modality(name="title", kind="text", length=5000, vocabulary=11)
    tensor = modality.preprocess(" ".join(f"word{i}" for i in range(5000)))
    for row in tensor:
        counts = np.bincount(row.astype(int), minlength=11)
        assert counts[0] == 0 and len(counts) == 11
        assert counts[1:].min() > 400 and counts[1:].max() < 600


def test_the_largest_vocabulary_is_exact_in_float32() -> None:
    modality = Modality(name="title", kind="text", length=3000, vocabulary=2**24)
    tensor = modality.preprocess(" ".join(f"w{i}" for i in range(3000)))
    expected = [1 + zlib.crc32(f"1 w{i}".encode()) % (2**24 - 1) for i in range(3000)]
    assert tensor[0].astype(np.int64).tolist() == expected


@pytest.mark.parametrize("text", ["", "   ", "?!... \u2013 _", "\ud800"])
def test_a_text_without_a_word_is_all_zeros(text: str) -> None:
    assert not TITLE.preprocess(text).any()


def test_another_process_gives_the_same_numbers() -> None:
    code = (
        "from mars_edge.modality import Modality;"
        "m = Modality(name='title', kind='text', length=6, vocabulary=1000);"
        "print(m.preprocess('Pasta alla Norma').tolist())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(TITLE.preprocess("Pasta alla Norma").tolist())


@pytest.mark.parametrize(
    ("raw", "kind"),
    [(np.zeros(3), "ndarray"), (np.array("a title"), "ndarray"), (b"a title", "bytes"), (None, "NoneType")],
)
def test_anything_but_a_str_is_no_text(raw: Any, kind: str) -> None:
    with pytest.raises(UsageError) as caught:
        TITLE.preprocess(raw)
    assert str(caught.value) == f"title: sample is of type {kind}, expected a str"


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("bounds", [(0.0, 255.0), (10.0, 200.0), (-3.3, 77.7)])
def test_the_table_of_an_8_bit_picture_gives_the_bits_of_the_arithmetic(
    channels: int, bounds: tuple[float, float]
) -> None:
    modality = Modality(name="rgb", kind="image", channels=channels, size=(12, 16), dtype="uint8", range=bounds)
    wide = random_image(modality, 24, 16)
    low, high = (np.float32(bound) for bound in bounds)
    planes = np.clip(wide[::2].transpose(2, 0, 1).astype(np.float32), low, high)
    expected = np.clip((planes - low) * np.float32(1.0 / (bounds[1] - bounds[0])), 0.0, 1.0)
    np.testing.assert_array_equal(modality.preprocess(wide[::2]), expected)
