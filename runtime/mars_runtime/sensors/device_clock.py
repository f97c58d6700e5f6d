"""A device's own clock, mapped to the monotonic one by the fastest deliveries."""

from __future__ import annotations

import math

_WINDOW_S = 30.0


class DeviceClock:
    """Learns the offset between two clocks as the smallest difference between receipt and stamp of the last minute.

    What every frame takes on its way stays in the offset: a mapped stamp is late by the fastest delivery, no more.
    A minute, because crystals drift apart by some ms in it.
    """

    def __init__(self) -> None:
        self._before_s = math.inf
        self._present_s = math.inf
        self._window_end_s = -math.inf

    def monotonic_s(self, stamp_s: float, now_s: float) -> float:
        """The monotonic time of the device's `stamp_s`, for a frame received at `now_s`; never later than `now_s`."""
        if now_s >= self._window_end_s:
            self._before_s, self._present_s = self._present_s, math.inf
            self._window_end_s = now_s + _WINDOW_S
        self._present_s = min(self._present_s, now_s - stamp_s)
        return min(now_s, stamp_s + min(self._before_s, self._present_s))
