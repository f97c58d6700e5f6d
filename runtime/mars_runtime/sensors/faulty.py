"""Any driver, with faults injected: the same open, read and close, broken on schedule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from mars_edge.errors import SensorError
from mars_edge.faults import Fault, FaultLine, Shown
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
        self._line = FaultLine(faults_of_it, seed=seed)
        self._stream_s = stream_s

    def set_faults(self, faults_of_it: Sequence[Fault]) -> None:
        """Replace every fault, from the next read on; any thread may ask."""
        self._line.set_faults(faults_of_it)

    @property
    def traits(self) -> Traits:
        """The inner source's, marked in the description."""
        inner = self._inner.traits
        if not self._line.faults:
            return inner
        return replace(inner, description=f"{inner.description} [{', '.join(map(str, self._line.faults))}]")

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
        shown = self._line.passed(None if frame is None else _shown(frame), self._stream_s())
        return None if shown is None else _frame(shown)

    def close(self) -> None:
        """Close the inner source."""
        self._inner.close()

    def interrupt(self) -> None:
        """End an `open` in progress, where the inner source can."""
        if isinstance(self._inner, Interruptible):
            self._inner.interrupt()

    def _refuse_if_unplugged(self) -> None:
        if self._line.active("unplug", self._stream_s()):
            raise SensorError(f"{self._inner.traits.description}: unplugged (injected)", gone=True)


def _shown(frame: Frame) -> Shown:
    return Shown(data=frame.data, sequence=frame.sequence, stamped_s=frame.captured_s, carrier=frame)


def _frame(shown: Shown) -> Frame:
    frame: Frame = shown.carrier
    return replace(frame, data=shown.data, sequence=shown.sequence, captured_s=shown.stamped_s)
