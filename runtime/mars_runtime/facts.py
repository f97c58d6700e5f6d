"""What the pixels of a sample say, measured once where it was captured: the facts that health judges."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mars_runtime.health import SampleSeen
from mars_runtime.sensors.driver import Frame, Traits


class FactFinder:
    """Measures the facts about a sample that need the pixels; remembers only the frame before."""

    def __init__(self, *, depth: bool) -> None:
        self._depth = depth
        self._before: Frame | None = None

    def facts(self, frame: Frame, traits: Traits, at_s: float) -> SampleSeen:
        """Receipt time, repetition, finiteness and the shares of dark, saturated and invalid pixels."""
        before, self._before = self._before, frame
        dark, saturated = _extremes(frame.data) if not self._depth else (0.0, 0.0)
        return SampleSeen(
            at_s=at_s,
            repeated=before is not None and not traits.static and _repeats(before, frame, traits.raw),
            usable=frame.data.dtype.kind != "f" or bool(np.isfinite(frame.data).all()),
            dark=dark,
            saturated=saturated,
            invalid_depth=_zero_share(frame.data) if self._depth else 0.0,
        )


def _repeats(before: Frame, frame: Frame, raw: bool) -> bool:
    if frame.sequence is not None and before.sequence is not None and frame.sequence <= before.sequence:
        return True
    return raw and np.array_equal(before.data, frame.data)


def _thinned(data: NDArray[Any]) -> NDArray[Any]:
    """Every fourth pixel each way: enough for a share, and cheap at full HD."""
    return data[::4, ::4]


def _extremes(data: NDArray[Any]) -> tuple[float, float]:
    """Shares of pixels below 10 % and at or above 98 % of the range, for 8-bit pictures."""
    if data.dtype != np.uint8 or data.ndim < 2:
        return 0.0, 0.0
    pixels = _thinned(data)
    return float(np.mean(pixels < 25.5)), float(np.mean(pixels >= 249.9))


def _zero_share(data: NDArray[Any]) -> float:
    return float(np.mean(_thinned(data) == 0)) if data.ndim >= 2 else 0.0
