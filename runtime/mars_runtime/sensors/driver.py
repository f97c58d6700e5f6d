"""What every sensor driver is: open, read, close; no threads, no retries, no opinion about health."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from mars_edge.errors import SensorError


class SourceEndedError(SensorError):
    """A finite source is read past its last frame: its regular end, not a fault."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One raw sample as it came from the source.

    Attributes:
        data: image (H, W) or (H, W, C), colour in RGB order; audio (T,); sequence (T, C); vector (L,).
        sequence: the source's own frame number, or None where it has none.
        last: no further frame follows (end of a file).
        captured_s: when it was taken, by the device's own time stamp on the monotonic clock; None where unknown.
        flags: what the source itself reported about it, e.g. "overflow" (sound before it was lost).
    """

    data: NDArray[Any]
    sequence: int | None = None
    last: bool = False
    captured_s: float | None = None
    flags: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What health and the pipeline must know about a source; may become more exact after `open`.

    Attributes:
        description: for people, e.g. "video file clip.mp4".
        rate_hz: frames per second it hands out when all is well.
        finite: it has an end (a file); a stream made only of finite sources ends with them.
        static: the same sample for ever (a still image): being constant is no fault.
        raw: uncompressed sensor data; noise makes two equal frames in a row impossible in health.
        simulated: rendered, not measured.
        start_grace_s: how long it may take to deliver its first frame before it counts as absent.
        identity: tells this device from any other at the same place; empty where nothing does.
    """

    description: str
    rate_hz: float
    finite: bool = False
    static: bool = False
    raw: bool = False
    simulated: bool = False
    start_grace_s: float = 15.0
    identity: str = ""

    @property
    def period_s(self) -> float:
        """Nominal seconds between two frames."""
        return 1.0 / self.rate_hz


class Driver(Protocol):
    """One source of samples, used by one thread at a time."""

    @property
    def traits(self) -> Traits:
        """Known before `open`; settings read back from a device replace guesses after it."""

    def open(self) -> None:
        """Make the source ready; a closed driver can be opened again.

        Raises:
            SensorError: the source cannot be opened; `.gone` if the device does not exist.
        """

    def read(self, timeout_s: float) -> Frame | None:
        """The next frame, or None if none came within about `timeout_s`.

        Raises:
            SourceEndedError: the last frame has been handed out.
            SensorError: the source failed; `.gone` if the device has vanished.
        """

    def close(self) -> None:
        """Release the source; closing twice or without `open` does nothing."""


@runtime_checkable
class Interruptible(Protocol):
    """A driver whose `open` can be ended from outside."""

    def interrupt(self) -> None:
        """Make an `open` in progress, and every later one, fail soon; any thread may ask."""
