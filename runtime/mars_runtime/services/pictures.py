"""Samples as pictures for people: colour as it is, depth by colour, sound as its waveform and a level meter.

Axes: H height, W width, T samples.
"""

from __future__ import annotations

import itertools
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mars_edge.modality import Modality
from mars_runtime.capture import Sample
from mars_runtime.sensors.vision import load_opencv

_QUALITY = 80
_LONGEST_PX = 640
_WAVE = (112, 320)
_INK = (90, 160, 40)
_LOUD = (40, 40, 200)
# The level meter below the waveform: rows, and the levels of its ends.
_METER_PX = 12
_QUIETEST_DB, _CLIPPED = -60.0, 0.999


class Album:
    """The last JPEG of each sensor, so that many viewers cost no more than one; any thread may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[Sample, bytes | None]] = {}

    def jpeg(self, sample: Sample, modality: Modality) -> bytes | None:
        """See the function `jpeg`."""
        with self._lock:
            kept = self._kept.get(modality.name)
            if kept is None or kept[0] is not sample:
                kept = (sample, jpeg(sample.frame.data, modality))
                self._kept[modality.name] = kept
            return kept[1]


def jpeg(sample: NDArray[Any], modality: Modality) -> bytes | None:
    """A JPEG of one raw sample, at most 640 pixels wide or high; None for what has no picture."""
    cv2 = load_opencv()
    if modality.kind == "audio":
        shown = waveform(sample)
    elif modality.kind == "image" and sample.ndim in (2, 3) and 0 not in sample.shape:
        shown = _small(visible(sample, modality.range))
    else:
        return None
    done, content = cv2.imencode(".jpg", shown, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return content.tobytes() if done else None


def visible(sample: NDArray[Any], value_range: tuple[float, float] | None) -> NDArray[np.uint8]:
    """The picture as (H, W) grey or (H, W, 3) blue-green-red bytes.

    8 bits are kept; of other types `value_range` is spread over a colour map, and zeros, which depth cameras give where
    they see nothing, are black.
    """
    cv2 = load_opencv()
    flat = sample[..., 0] if sample.ndim == 3 and sample.shape[2] == 1 else sample
    if flat.dtype == np.uint8:
        return np.ascontiguousarray(flat[..., ::-1] if flat.ndim == 3 else flat)
    if flat.ndim == 3:
        flat = flat.mean(axis=2)
    values = np.nan_to_num(flat.astype(np.float32))
    low, high = value_range if value_range is not None else (float(values.min()), float(values.max()))
    share = np.clip((values - low) / max(high - low, 1e-6), 0.0, 1.0)
    colours = cv2.applyColorMap((255.0 * share).astype(np.uint8), cv2.COLORMAP_TURBO)
    colours[values == 0.0] = 0
    return np.asarray(colours, np.uint8)


def _small(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    cv2 = load_opencv()
    height, width = picture.shape[:2]
    scale = _LONGEST_PX / max(height, width)
    if scale >= 1.0:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def waveform(sample: NDArray[Any]) -> NDArray[np.uint8]:
    """Lowest and highest value of each of 320 spans of a sound (T,), full scale over the height, above its level.

    The meter is as long as the root mean square is loud, from -60 dB to full scale; red once a sample is at full scale.
    """
    height, width = _WAVE
    sound = sample.astype(np.float32).ravel()
    if np.issubdtype(sample.dtype, np.integer):
        sound /= -float(np.iinfo(sample.dtype).min) or 1.0
    canvas = np.full((height, width, 3), 245, np.uint8)
    edges = np.linspace(0, len(sound), width + 1).astype(int)
    for x, (begin, end) in enumerate(itertools.pairwise(edges)):
        span = sound[begin : max(end, begin + 1)] if begin < len(sound) else np.zeros(1, np.float32)
        low, high = (round((1.0 - float(np.clip(v, -1, 1))) * (height - 1) / 2) for v in (span.max(), span.min()))
        canvas[low : high + 1, x] = _INK
    return np.concatenate([canvas, _meter(sound, width)])


def _meter(sound: NDArray[np.float32], width: int) -> NDArray[np.uint8]:
    level = float(np.sqrt(np.mean(np.square(sound, dtype=np.float64)))) if len(sound) else 0.0
    level_db = 20.0 * np.log10(max(level, 1e-9))
    share = float(np.clip(1.0 - level_db / _QUIETEST_DB, 0.0, 1.0))
    bar = np.full((_METER_PX, width, 3), 225, np.uint8)
    clipped = len(sound) > 0 and float(np.abs(sound).max()) >= _CLIPPED
    bar[2:, : round(share * width)] = _LOUD if clipped else _INK
    return bar
