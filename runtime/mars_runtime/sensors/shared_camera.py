"""Several channels of one camera, each a driver of its own, over one process and one opening of the device.

Vendors' kits let one process hold a camera, or a sensor of it. No thread is started: whichever channel reads while no
other does asks the process for the next frame, and lays another channel's frame into that one's box.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mars_edge.errors import SensorError
from mars_runtime.sensors.bundle import Bundle
from mars_runtime.sensors.driver import Frame, SourceEndedError, Traits
from mars_runtime.sensors.isolated import OPEN_TIMEOUT_S, IsolatedDriver
from mars_runtime.sensors.pace import Clock

# An open camera none of whose channels gave a frame for so long is opened anew by the first channel that reopens.
QUIET_S = 1.0
# How soon an opening or an interruption is noticed by whoever waits or reads.
_SLICE_S = 0.05
_ANSWER_S = 0.5


class Channel:
    """One stream of a shared camera."""

    def __init__(self, camera: SharedCamera, name: str) -> None:
        self._camera = camera
        self._name = name
        self._interrupted = threading.Event()

    @property
    def traits(self) -> Traits:
        """The channel's own."""
        return self._camera.traits(self._name)

    def open(self) -> None:
        """Open the camera, or join it where it is open and delivers; see `SharedCamera.join`."""
        self._camera.join(self._name, self._interrupted)

    def read(self, timeout_s: float) -> Frame | None:
        """The channel's newest frame, or None; see `SharedCamera.read`."""
        return self._camera.read(self._name, timeout_s)

    def close(self) -> None:
        """Leave; the camera is closed with its last channel."""
        self._camera.leave(self._name)

    def interrupt(self) -> None:
        """Make this channel's open in progress, and every later one, fail within 0.1 s; any thread may ask."""
        self._interrupted.set()


class SharedCamera:
    """One device; any thread may use it, each with channels of its own.

    Args:
        make: picklable; makes the bundle of all channels that are wanted.
        open_timeout_s: as of `IsolatedDriver`.
    """

    def __init__(
        self, make: Callable[[], Bundle], *, open_timeout_s: float = OPEN_TIMEOUT_S, clock: Clock = time.monotonic
    ) -> None:
        self._driver = IsolatedDriver(make, open_timeout_s=open_timeout_s)
        self._clock = clock
        # Guards all below; the driver itself is used without it, by the one thread that set `_busy`.
        self._news = threading.Condition()
        self._busy = False
        # A thread opens or closes the device, or is about to: no new read begins.
        self._changing = False
        self._is_open = False
        self._openings = 0
        self._failed: SensorError | None = None
        self._broken: SensorError | None = None
        self._heard_s = 0.0
        self._waiting = 0
        self._joined: set[str] = set()
        self._boxes: dict[str, Frame] = {}
        self._errors: dict[str, SensorError] = {}

    def channels(self) -> dict[str, Channel]:
        """A driver for each channel of the bundle."""
        return {name: Channel(self, name) for name in self._driver.channels}

    def traits(self, channel: str) -> Traits:
        """Of one channel."""
        return self._driver.channels[channel]

    @property
    def process_id(self) -> int | None:
        """Of the process that holds the device; None while it is closed."""
        return self._driver.process_id

    def join(self, channel: str, interrupted: threading.Event) -> None:
        """Make a channel ready: join what is open and delivers, wait for whoever opens it, or open it.

        Raises:
            SensorError: as `IsolatedDriver.open`, also of an open that was waited for; or why the channel is refused.
        """
        with self._news:
            self._forget(channel)
            self._waiting += 1
            try:
                self._wait_for_change(channel, interrupted)
                if not self._delivers():
                    self._open(interrupted)
                elif channel in self._driver.refused:
                    self._open_refused(interrupted)
                if channel in self._driver.refused:
                    raise SensorError(self._driver.refused[channel])
                self._joined.add(channel)
            finally:
                self._waiting -= 1
                self._end_if_unused()

    def read(self, channel: str, timeout_s: float) -> Frame | None:
        """The newest frame of a channel, each once, or None after `timeout_s`, whatever the library does.

        Raises:
            SourceEndedError, SensorError: as the bundle; what concerns the device, every channel is told.
        """
        until_s = time.monotonic() + timeout_s
        with self._news:
            if channel not in self._joined:
                raise SensorError(f"{self.traits(channel).description}: read before open")
            while (frame := self._taken(channel)) is None:
                left_s = until_s - time.monotonic()
                if not (self._busy or self._changing):
                    self._lead(min(max(0.0, left_s), _SLICE_S))
                elif left_s > 0.0:
                    self._news.wait(left_s)
                if left_s <= 0.0:
                    return self._taken(channel)
            return frame

    def leave(self, channel: str) -> None:
        """Let a channel go; the last one ends the process."""
        with self._news:
            self._forget(channel)
            self._end_if_unused()

    def _forget(self, channel: str) -> None:
        self._joined.discard(channel)
        self._boxes.pop(channel, None)
        self._errors.pop(channel, None)

    def _wait_for_change(self, channel: str, interrupted: threading.Event) -> None:
        openings = self._openings
        while True:
            if interrupted.is_set():
                raise SensorError(f"{self.traits(channel).description}: interrupted while it opened")
            if not self._changing:
                break
            self._news.wait(_SLICE_S)
        if self._openings != openings and self._failed is not None:
            raise _again(self._failed)

    def _delivers(self) -> bool:
        """Whether the device is open and must not be taken from its other channels."""
        if isinstance(self._broken, SourceEndedError):
            return True
        slowest_s = max(traits.period_s for traits in self._driver.channels.values())
        quiet_s = self._clock() - self._heard_s
        return self._is_open and self._broken is None and quiet_s < max(QUIET_S, 2.0 * slowest_s)

    def _open(self, interrupted: threading.Event) -> None:
        self._boxes.clear()
        self._errors.clear()
        self._change(self._driver.open, interrupted)
        self._broken = None
        self._is_open = True
        self._heard_s = self._clock()

    def _open_refused(self, interrupted: threading.Event) -> None:
        with self._alone():
            # The answer to the last read comes first.
            self._lead(_ANSWER_S)
        self._change(self._driver.open_refused, interrupted)

    def _change(self, act: Callable[[], None], interrupted: threading.Event) -> None:
        """Open; a failure is also everyone's who waits for it or has joined."""
        with self._alone():
            self._driver.interrupted = interrupted
            try:
                with self._outside():
                    act()
                self._failed = None
            except SensorError as error:
                self._is_open = False
                self._broken = error
                # An interruption is the opener's own affair: the next who waits tries again.
                self._failed = None if interrupted.is_set() else error
                raise
            finally:
                self._openings += 1

    def _end_if_unused(self) -> None:
        if self._joined or self._waiting or self._changing or self._driver.process_id is None:
            return
        with self._alone(), self._outside():
            self._driver.close()
        self._is_open = False

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep others from opening and reading; the read in progress is waited for."""
        self._changing = True
        try:
            while self._busy:
                self._news.wait(_SLICE_S)
            yield
        finally:
            self._changing = False
            self._news.notify_all()

    @contextmanager
    def _outside(self) -> Iterator[None]:
        """Use the driver without the lock."""
        self._busy = True
        self._news.release()
        try:
            yield
        finally:
            self._news.acquire()
            self._busy = False
            self._news.notify_all()

    def _lead(self, timeout_s: float) -> None:
        """Take the next frame of any channel from the driver."""
        try:
            with self._outside():
                taken = self._driver.read_any(timeout_s)
        except SensorError as error:
            if error.gone or isinstance(error, SourceEndedError):
                self._broken = error
            else:
                self._errors = dict.fromkeys(self._joined, error)
            return
        if taken is not None:
            self._heard_s = self._clock()
            if taken[0] in self._joined:
                self._boxes[taken[0]] = taken[1]

    def _taken(self, channel: str) -> Frame | None:
        """What lies in the channel's box; frames come before what ended them."""
        frame = self._boxes.pop(channel, None)
        if frame is not None:
            return frame
        error = self._errors.pop(channel, None) or self._broken
        if error is not None:
            raise _again(error)
        return None


def _again(error: SensorError) -> SensorError:
    """The same for another thread: one exception object has one traceback."""
    if isinstance(error, SourceEndedError):
        return SourceEndedError(str(error))
    return SensorError(str(error), gone=error.gone)
