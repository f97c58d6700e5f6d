"""From a raw sample to the network's tensor: the one implementation used in training and on the device.

Axes: H height, W width, C channels, T time, F frequency bands, L words.
The tensor is always float32; every kind but text is scaled by the modality's own range, never by the data, so
one frame gives the same tensor whatever came before it. A sample with NaN or infinity is refused: an
engine would run it silently and answer nonsense.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mars_edge.errors import UsageError
from mars_edge.modality import Modality

# Log-mel power is clipped to this many decibels below full scale, then mapped to 0..1.
_AUDIO_FLOOR_DB = -80.0
_WORD = re.compile(r"[^\W_]+")


def preprocess(modality: Modality, raw: NDArray[Any] | str) -> NDArray[np.float32]:
    """The tensor of `modality.shape`, C-contiguous float32, from one raw sample.

    Raises:
        UsageError: the sample is not an array (for text: not a str), rank, channel count or element type is not
            what the modality declares, an array is empty, or a value is not finite.
    """
    if modality.kind == "text":
        return _text(modality, raw)
    if not isinstance(raw, np.ndarray):
        raise UsageError(f"{modality.name}: sample is of type {type(raw).__name__}, expected an array")
    _need_finite(modality, raw)
    return {"image": _image, "audio": _audio, "sequence": _sequence, "vector": _vector}[modality.kind](modality, raw)


def _need_finite(modality: Modality, raw: NDArray[Any]) -> None:
    if np.issubdtype(raw.dtype, np.floating) and not np.isfinite(raw).all():
        bad = int(np.count_nonzero(~np.isfinite(raw)))
        raise UsageError(f"{modality.name}: {bad} of {raw.size} values are not finite")


def _scale(modality: Modality, values: NDArray[np.float32]) -> NDArray[np.float32]:
    low, high = modality.range
    # Clipped before the subtraction, which can overflow, and after it: the factor is rounded.
    scaled = np.clip(values, np.float32(low), np.float32(high))
    # In place: fresh arrays of a picture's size cost more in page faults than in arithmetic.
    scaled -= np.float32(low)
    scaled *= np.float32(1.0 / (high - low))
    return np.clip(scaled, 0.0, 1.0, out=scaled)


def _need_dtype(modality: Modality, raw: NDArray[Any]) -> None:
    if raw.dtype != np.dtype(modality.dtype):
        raise UsageError(f"{modality.name}: sample is {raw.dtype}, expected {modality.dtype}")


def _image(modality: Modality, raw: NDArray[Any]) -> NDArray[np.float32]:
    assert modality.size is not None
    _need_dtype(modality, raw)
    image = raw[:, :, None] if raw.ndim == 2 else raw
    if image.ndim != 3 or image.shape[2] != modality.channels or image.size == 0:
        raise UsageError(
            f"{modality.name}: image has shape {raw.shape}, expected (H, W, {modality.channels})"
            + (" or (H, W)" if modality.channels == 1 else "")
        )
    if image.shape[:2] != modality.size:
        # Floats are clipped first: the mean of two huge ones of opposite sign could be NaN.
        image = np.clip(image, *modality.range) if modality.dtype == "float32" else image
        image = _resize(image, modality.size)
    if image.dtype == np.uint8:
        return _looked_up(image, _levels(modality))
    planes = np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32)
    return _scale(modality, planes)


@lru_cache(maxsize=64)
def _levels(modality: Modality) -> NDArray[np.float32]:
    """What each of the 256 values of an 8-bit sample is scaled to: arithmetic on 256 numbers, not on every pixel."""
    return _scale(modality, np.arange(256, dtype=np.float32))


def _looked_up(image: NDArray[np.uint8], levels: NDArray[np.float32]) -> NDArray[np.float32]:
    """(H, W, C) to (C, H, W) through the table."""
    import cv2

    height, width, channels = image.shape
    planes = np.empty((channels, height, width), np.float32)
    cv2.split(cv2.LUT(np.ascontiguousarray(image), levels), list(planes))
    return planes


def _resize(image: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Area interpolation when shrinking, linear when growing; (H, W, C) in and out, type kept.

    In uint16 images 0 is "no measurement": averaged with millimetres it would invent distances.
    """
    if image.dtype != np.uint16 or image.all():
        return _interpolate(image, size)
    measured = _interpolate((image > 0).astype(np.float32), size)
    total = _interpolate(image.astype(np.float32), size)
    # Under half measured is a hole; the mean over the measured part otherwise.
    mean = np.divide(total, measured, out=np.zeros_like(total), where=measured >= 0.5)
    rounded: NDArray[np.uint16] = np.rint(mean).astype(np.uint16)
    return rounded


def _interpolate(image: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    import cv2

    height, width = size
    shrinks = image.shape[0] >= height and image.shape[1] >= width
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    # By fours: OpenCV's area code stops at 4 channels when one side keeps its length.
    groups = [np.ascontiguousarray(image[:, :, c : c + 4]) for c in range(0, image.shape[2], 4)]
    resized = [cv2.resize(group, (width, height), interpolation=how).reshape(height, width, -1) for group in groups]
    return resized[0] if len(resized) == 1 else np.concatenate(resized, axis=2)


def _audio(modality: Modality, raw: NDArray[Any]) -> NDArray[np.float32]:
    if raw.ndim != 1 or raw.size == 0:
        raise UsageError(f"{modality.name}: audio has shape {raw.shape}, expected (T,) mono samples, T >= 1")
    if raw.dtype != np.float32:
        raise UsageError(f"{modality.name}: audio is {raw.dtype}, expected float32 in -1..1")
    window = np.zeros(modality.window_samples, dtype=np.float32)
    kept = raw[-window.size :]
    window[: kept.size] = kept
    return log_mel(modality, window)[None]


def log_mel(modality: Modality, window: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log-mel power spectrogram in 0..1, shape (F, T): 0 is -80 dB and below, 1 is 0 dB.

    Hann-windowed frames, power spectrum over the squared sum of the window (a full-scale sine peaks at
    -6 dB), triangular bands that are evenly spaced on the mel scale 2595 log10(1 + f / 700) from 0 Hz to
    half the sampling rate.
    """
    frame, hop = modality.frame_samples, modality.hop_samples
    starts = np.arange(modality.audio_frames) * hop
    frames = window[starts[:, None] + np.arange(frame)[None, :]] * _hann(frame)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2 / np.sum(_hann(frame)) ** 2
    bands = _mel_filters(modality.mel_bands, frame, modality.rate_hz) @ power.T
    decibels = 10.0 * np.log10(np.maximum(bands, 1e-12))
    scaled = np.clip(1.0 - decibels / _AUDIO_FLOOR_DB, 0.0, 1.0)
    return np.ascontiguousarray(scaled, dtype=np.float32)


@lru_cache(maxsize=8)
def _hann(length: int) -> NDArray[np.float64]:
    # The periodic form, as usual for spectral analysis (numpy.hanning is the symmetric one).
    return np.hanning(length + 1)[:-1]


@lru_cache(maxsize=8)
def _mel_filters(bands: int, frame: int, rate_hz: float) -> NDArray[np.float64]:
    """Triangular filters, shape (bands, frame // 2 + 1), peak 1."""
    top_mel = 2595.0 * np.log10(1.0 + rate_hz / 2.0 / 700.0)
    edges_hz = 700.0 * (10.0 ** (np.linspace(0.0, top_mel, bands + 2) / 2595.0) - 1.0)
    bins_hz = np.arange(frame // 2 + 1) * rate_hz / frame
    low, centre, high = edges_hz[:-2, None], edges_hz[1:-1, None], edges_hz[2:, None]
    rising = (bins_hz - low) / (centre - low)
    falling = (high - bins_hz) / (high - centre)
    return np.maximum(0.0, np.minimum(rising, falling))


def _sequence(modality: Modality, raw: NDArray[Any]) -> NDArray[np.float32]:
    assert modality.length is not None
    _need_dtype(modality, raw)
    if raw.ndim != 2 or raw.shape[1] != modality.channels or raw.shape[0] < 1:
        raise UsageError(f"{modality.name}: sequence has shape {raw.shape}, expected (T, {modality.channels}), T >= 1")
    rows = raw.astype(np.float32)
    if rows.shape[0] != modality.length:
        rows = _resample_rows(rows, modality.length)
    return np.ascontiguousarray(_scale(modality, rows).T)


def _resample_rows(rows: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """Linear interpolation in time, first and last row kept; (T, C) -> (length, C)."""
    at = np.linspace(0.0, rows.shape[0] - 1.0, length)
    steps = np.arange(rows.shape[0])
    return np.stack([np.interp(at, steps, column) for column in rows.T], axis=1).astype(np.float32)


def _vector(modality: Modality, raw: NDArray[Any]) -> NDArray[np.float32]:
    _need_dtype(modality, raw)
    if raw.shape != modality.shape:
        raise UsageError(f"{modality.name}: vector has shape {raw.shape}, expected {modality.shape}")
    return _scale(modality, raw.astype(np.float32))


def _text(modality: Modality, raw: object) -> NDArray[np.float32]:
    """Word numbers and word-pair numbers, (2, L): the first L words, zeros after the last one.

    A text without a word is all zeros: someone may have written nothing, or nothing but punctuation.
    """
    if not isinstance(raw, str):
        raise UsageError(f"{modality.name}: sample is of type {type(raw).__name__}, expected a str")
    assert modality.length is not None and modality.vocabulary is not None
    numbers = np.zeros(modality.shape, dtype=np.float32)
    before = ""
    for at, word in enumerate(split_words(raw, modality.length)):
        numbers[0, at] = _bucket(f"1 {word}", modality.vocabulary)
        numbers[1, at] = _bucket(f"2 {before} {word}", modality.vocabulary)
        before = word
    return numbers


def split_words(text: str, most: int) -> list[str]:
    """The first `most` runs of letters and digits, in lower case, compatible characters made one (Unicode NFKC)."""
    return [found[0] for found in islice(_WORD.finditer(unicodedata.normalize("NFKC", text).lower()), most)]


def _bucket(text: str, vocabulary: int) -> int:
    """1 to vocabulary - 1, the same on every machine and in every process; Python's own hash is neither."""
    return 1 + zlib.crc32(text.encode("utf-8")) % (vocabulary - 1)
