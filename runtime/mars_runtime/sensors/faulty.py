"""Any driver, with faults injected: the same open, read and close, broken on schedule."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from mars_edge import faults
from mars_edge.errors import SensorError
from mars_edge.faults import Fault
from mars_runtime.sensors.driver import Driver, Frame, Interruptible, Traits


class FaultyDriver:
    """Passes frames through while no fault is active; with several active, each is applied in turn.

    `stream_s` tells the stream's time in seconds, which the faults' times refer to. While samples are
    suppressed the inner source is still read, so a file goes on and a camera's buffer does not fill.
    """

    def __init__(
        self, inner: Driver, faults_of_it: Sequence[Fault], *, stream_s: Callable[[], float], seed: int
    ) -> None:
        self._inner = inner
        self._faults = tuple(faults_of_it)
        self._stream_s = stream_s
        self._generator = np.random.default_rng(seed)
        self._phases = faults.IntermittentPhases(seed)
        self._count = 0
        self._held: Frame | None = None
        self._delayed: deque[tuple[float, Frame]] = deque()

    def set_faults(self, faults_of_it: Sequence[Fault]) -> None:
        """Replace every fault, from the next read on; any thread may ask."""
        self._faults = tuple(faults_of_it)

    @property
    def traits(self) -> Traits:
        """The inner source's, marked in the description."""
        inner = self._inner.traits
        return replace(inner, description=f"{inner.description} [{', '.join(map(str, self._faults))}]")

    def open(self) -> None:
        """Open the inner source; refuses while it is unplugged."""
        self._refuse_if_unplugged()
        self._inner.open()

    def read(self, timeout_s: float) -> Frame | None:
        """The next frame as the faults leave it, or None."""
        self._refuse_if_unplugged()
        frame = self._inner.read(timeout_s)
        # Again: reading takes time, and the plug may be pulled meanwhile.
        self._refuse_if_unplugged()
        for fault in self._active():
            frame = self._apply(fault, frame)
        if frame is not None and not self._is("stuck"):
            self._held = frame
        return frame

    def close(self) -> None:
        """Close the inner source."""
        self._inner.close()

    def interrupt(self) -> None:
        """End an `open` in progress, where the inner source can."""
        if isinstance(self._inner, Interruptible):
            self._inner.interrupt()

    def _active(self) -> list[Fault]:
        now_s = self._stream_s()
        return [fault for fault in self._faults if fault.active(now_s)]

    def _is(self, kind: str) -> bool:
        return any(fault.kind == kind for fault in self._active())

    def _refuse_if_unplugged(self) -> None:
        if self._is("unplug"):
            raise SensorError(f"{self._inner.traits.description}: unplugged (injected)", gone=True)

    def _apply(self, fault: Fault, frame: Frame | None) -> Frame | None:
        if fault.kind == "delayed":
            return self._delay(frame)
        if frame is None or fault.kind == "off":
            return None
        if fault.kind == "stuck":
            self._held = self._held or frame
            return replace(frame, data=self._held.data, sequence=self._held.sequence)
        if fault.kind == "slow":
            self._count += 1
            return frame if self._count % faults.SLOW_DIVISOR == 0 else None
        if fault.kind == "intermittent":
            return frame if self._phases.up(self._stream_s() - fault.start_s) else None
        return replace(frame, data=faults.corrupt(fault.kind, frame.data, self._generator))

    def _delay(self, frame: Frame | None) -> Frame | None:
        now_s = self._stream_s()
        if frame is not None:
            self._delayed.append((now_s + faults.DELAY_S, frame))
        if self._delayed and self._delayed[0][0] <= now_s:
            return self._delayed.popleft()[1]
        return None
