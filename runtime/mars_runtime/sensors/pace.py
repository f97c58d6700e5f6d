"""Pacing of sources that have no clock of their own: files, stills and the simulated rig."""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]
Sleep = Callable[[float], None]


class Pacer:
    """Grants one frame per period, never two for the same period.

    A reader that falls more than one period behind skips the missed periods instead of bursting.
    """

    def __init__(self, rate_hz: float, *, clock: Clock = time.monotonic, sleep: Sleep = time.sleep) -> None:
        self._period_s = 1.0 / rate_hz
        self._clock = clock
        self._sleep = sleep
        self._due_s: float | None = None

    def wait(self, timeout_s: float) -> bool:
        """True once the next frame is due; False if it is not due within `timeout_s`."""
        now_s = self._clock()
        if self._due_s is None:
            self._due_s = now_s
        ahead_s = self._due_s - now_s
        if ahead_s > timeout_s:
            self._sleep(timeout_s)
            return False
        if ahead_s > 0.0:
            self._sleep(ahead_s)
        late_periods = max(0, int((self._clock() - self._due_s) / self._period_s))
        self._due_s += (1 + late_periods) * self._period_s
        return True
