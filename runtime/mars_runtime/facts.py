"""What a sample says, measured once where it was captured: the facts that health judges.

Axes: H and W pixels of a picture, C channels, T audio samples. Shares are 0..1 of the range of the element type.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mars_edge.modality import Modality
from mars_runtime import surface
from mars_runtime.health import SampleSeen
from mars_runtime.limits import SensorKind, kind_of
from mars_runtime.sensors.driver import Frame, Traits

BLOCKS = 5
# A block has no texture below this standard deviation of its pixels, each averaged over an area.
TEXTURE_SHARE = 0.008
# Above this mean absolute difference a picture becomes the reference that later ones are compared with.
STILL_SHARE = 0.001
_THINNED_SIDE = 120
_TEXTURE_SIDE = 180
_BLOCK_CELLS = 12
_NOISE_ROWS, _NOISE_COLUMNS = 24, 320
# Mean of |x| of a standard normal variable over the smaller three quarters of its values.
_TRIMMED_MEAN = 0.51483
_FULL_SCALE_AUDIO = 0.999
# Less than this between the ends of the range is hot pixels, which are the same in every picture.
_UNCLIPPED_SHARE = 0.01


class FactFinder:
    """Measures the facts about a sample; remembers the frame before and one reference picture.

    Args:
        kind: of the sensor, which says what can be measured.
        rate_hz: audio samples per second; of no meaning for other kinds.
    """

    def __init__(self, kind: SensorKind, *, rate_hz: float = 16000.0) -> None:
        self._kind = kind
        self._rate_hz = rate_hz
        self._before: Frame | None = None
        self._reference: NDArray[Any] | None = None
        self._zeros_s = 0.0

    @classmethod
    def of(cls, modality: Modality) -> FactFinder:
        """The finder for a sensor that feeds `modality`."""
        return cls(kind_of(modality), rate_hz=modality.rate_hz)

    def facts(self, frame: Frame, traits: Traits, at_s: float) -> SampleSeen:
        """Receipt and stamp, repetition, finiteness, and what the kind of sensor allows to be measured."""
        before, self._before = self._before, frame
        data = frame.data
        return SampleSeen(
            at_s=at_s,
            stamped_s=frame.captured_s,
            repeated=before is not None and not traits.static and _repeats(before, frame, traits.raw),
            usable=data.dtype.kind != "f" or bool(np.isfinite(data).all()),
            **self._measured(data, traits),
        )

    def _measured(self, data: NDArray[Any], traits: Traits) -> dict[str, Any]:
        if self._kind == "audio" and data.ndim == 1 and data.size:
            return self._sound(data, traits)
        if self._kind == "depth" and data.dtype == np.uint16 and data.ndim >= 2 and data.size:
            thinned = _thinned(data)
            return {
                "invalid_depth": surface.missing_share(_plane(thinned)),
                "saturated": _saturated(thinned),
                "noise": surface.roughness(_plane(data)),
            }
        if self._kind in ("colour", "infrared") and data.dtype == np.uint8 and data.ndim >= 2 and data.size:
            thinned = _thinned(data)
            return {
                "dark": float(np.mean(thinned < 25.5)),
                "saturated": _saturated(thinned),
                "flat": flat_share(data),
                "noise": noise(data),
                "still": self._still(thinned, traits),
            }
        # A zero of a picture of another type is a zero too: 16-bit depth without its declared type is refused later.
        return {"invalid_depth": _zero_share(data)} if self._kind == "depth" else {}

    def _still(self, thinned: NDArray[Any], traits: Traits) -> float | None:
        """Mean absolute difference to the reference; None where standing still is told by the payload or no fault."""
        if traits.raw or traits.static or traits.finite:
            return None
        now = thinned.astype(np.int16)
        reference = self._reference
        if reference is None or reference.shape != now.shape:
            self._reference = now
            return None
        difference = float(np.mean(np.abs(now - reference))) / 255.0
        if difference > STILL_SHARE:
            self._reference = now
        return difference

    def _sound(self, data: NDArray[Any], traits: Traits) -> dict[str, Any]:
        """Of the newest part of a window: what the windows before did not have."""
        hop = min(data.size, max(1, round(self._rate_hz / traits.rate_hz)))
        new = np.abs(data[-hop:].astype(np.float64))
        heard = np.flatnonzero(new)
        silence = hop - 1 - int(heard[-1]) if heard.size else hop
        self._zeros_s = silence / self._rate_hz + (0.0 if heard.size else self._zeros_s)
        level = math.sqrt(float(np.mean(new**2)))
        return {
            # A file may hold digital silence; the noise of a live microphone cannot.
            "zeros_s": self._zeros_s if traits.raw else None,
            "loudness_dbfs": 20.0 * math.log10(max(level, 1e-6)),
            "clipped": float(np.mean(new >= _FULL_SCALE_AUDIO)),
        }


def _repeats(before: Frame, frame: Frame, raw: bool) -> bool:
    if frame.sequence is not None and before.sequence is not None and frame.sequence <= before.sequence:
        return True
    return raw and np.array_equal(before.data, frame.data) and _could_differ(frame.data)


def _could_differ(data: NDArray[Any]) -> bool:
    """Whether noise could show in it: in total darkness or glare a healthy sensor gives the same clipped values too."""
    most = np.iinfo(data.dtype).max if data.dtype.kind in "iu" else math.inf
    return float(np.mean((data != 0) & (data != most))) >= _UNCLIPPED_SHARE


def _thinned(data: NDArray[Any]) -> NDArray[Any]:
    """Every fourth pixel each way, of large pictures fewer: enough for a share, and cheap at full HD."""
    step = max(4, min(data.shape[:2]) // _THINNED_SIDE)
    return np.ascontiguousarray(data[::step, ::step])


def _saturated(thinned: NDArray[Any]) -> float:
    """Share of the values at 98 % of the range or above."""
    return float(np.mean(thinned >= 0.98 * np.iinfo(thinned.dtype).max))


def _zero_share(data: NDArray[Any]) -> float:
    return float(np.mean(_thinned(data) == 0)) if data.ndim >= 2 else 0.0


def _plane(data: NDArray[Any]) -> NDArray[Any]:
    """(H, W): a grey picture itself, of a colour one its green, which is nearest to its brightness."""
    return data if data.ndim == 2 else data[:, :, min(1, data.shape[2] - 1)]


def flat_share(data: NDArray[np.uint8]) -> float | None:
    """Share of the 25 blocks of a picture that have no texture; None for one too small to be cut into blocks.

    Averaging over small areas first makes noise vanish and leaves texture.
    """
    plane = _plane(data)
    thin = max(1, min(plane.shape) // _TEXTURE_SIDE)
    plane = plane[::thin, ::thin]
    cells = BLOCKS * min(_BLOCK_CELLS, min(plane.shape) // (2 * BLOCKS))
    if cells < 2 * BLOCKS:
        return None
    tall, wide = plane.shape[0] // cells, plane.shape[1] // cells
    areas = plane[: tall * cells, : wide * cells].astype(np.float32).reshape(cells, tall, cells, wide)
    blocks = areas.mean(axis=(1, 3)).reshape(BLOCKS, cells // BLOCKS, BLOCKS, cells // BLOCKS)
    return float(np.mean(blocks.std(axis=(1, 3)) < 255.0 * TEXTURE_SHARE))


def noise(data: NDArray[Any]) -> float | None:
    """Standard deviation of the pixel noise as a share of the range; None for a picture below 3 x 3.

    Second differences across and along cancel gradients and edges along either axis (Immerkaer, Fast Noise Variance
    Estimation, 1996); the mean over the smaller three quarters of them leaves out what is texture. Rows spread over
    the middle of the picture bound the cost.
    """
    plane = _plane(data)
    if min(plane.shape) < 3:
        return None
    left = max(0, (plane.shape[1] - _NOISE_COLUMNS) // 2)
    rows = np.linspace(0, plane.shape[0] - 3, min(_NOISE_ROWS, plane.shape[0] - 2)).astype(np.intp)
    middle = plane[:, left : left + _NOISE_COLUMNS]
    above, at, below = (middle[rows + k].astype(np.float32) for k in range(3))
    down = above - 2.0 * at + below
    both = np.abs(down[:, :-2] - 2.0 * down[:, 1:-1] + down[:, 2:]).ravel()
    kept = max(1, 3 * both.size // 4)
    smallest = np.partition(both, kept - 1)[:kept]
    return float(smallest.mean()) / (6.0 * _TRIMMED_MEAN * float(np.iinfo(data.dtype).max))
