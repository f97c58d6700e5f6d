"""One thread per sensor: it owns the device and fills a one-slot mailbox.

The decision loop never touches a driver, so a device that hangs, errs or vanishes cannot delay it.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from mars_edge.errors import SensorError
from mars_runtime.facts import FactFinder
from mars_runtime.health import Ended, Event, ReadFailed
from mars_runtime.sensors.driver import Driver, Frame, Interruptible, SourceEndedError, Traits
from mars_runtime.sensors.pace import Clock

READ_TIMEOUT_S = 0.1
BACKOFF_FIRST_S = 1.0
BACKOFF_LIMIT_S = 30.0
BACKOFF_JITTER = 0.2
_EVENTS_KEPT = 1024


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One frame and the monotonic time it was received at."""

    frame: Frame
    at_s: float


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """What happened at one sensor since the previous `take`.

    Attributes:
        sample: the newest sample if it was not handed out before.
        events: for the health state machine, oldest first.
    """

    sample: Sample | None
    events: tuple[Event, ...]


class Doorbell:
    """Rings when any sensor has news; the decision loop waits on it."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._rung = False

    def ring(self) -> None:
        """Wake the waiting loop, or let its next wait return at once."""
        with self._condition:
            self._rung = True
            self._condition.notify_all()

    def wait(self, timeout_s: float) -> bool:
        """True if it rang since the last wait; False after `timeout_s`."""
        with self._condition:
            rang = self._condition.wait_for(lambda: self._rung, timeout=max(0.0, timeout_s))
            self._rung = False
        return rang


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What one capture thread counted since its start.

    Attributes:
        dropped: samples replaced by a newer one before they were taken.
        reconnects: times the device was opened again.
        overflows: samples before which the source itself lost something.
    """

    received: int
    dropped: int
    reconnects: int
    overflows: int = 0


class Mailbox:
    """Holds at most one sample; a newer one replaces it, and the replaced one is counted.

    Any thread may call any method.
    """

    def __init__(self, doorbell: Doorbell) -> None:
        self._doorbell = doorbell
        self._lock = threading.Lock()
        self._sample: Sample | None = None
        self._events: deque[Event] = deque(maxlen=_EVENTS_KEPT)
        self._failure: Exception | None = None
        self.dropped = 0
        self.received = 0
        self.overflows = 0

    def put(self, sample: Sample | None, *events: Event) -> None:
        """Store a sample, if any, and the events that go with it, in one step."""
        with self._lock:
            if sample is not None:
                self.dropped += self._sample is not None
                self.received += 1
                self.overflows += "overflow" in sample.frame.flags
                self._sample = sample
            self._events.extend(events)
        self._doorbell.ring()

    def fail(self, error: Exception) -> None:
        """Leave the exception that ended the capture thread for the reader."""
        with self._lock:
            self._failure = error
        self._doorbell.ring()

    @property
    def waiting(self) -> bool:
        """Whether a sample lies there that was not handed out yet."""
        return self._sample is not None

    def take(self) -> Delivery:
        """The newest sample at most once, and every event since the last call.

        Raises:
            Exception: whatever ended the capture thread, a bug of a driver.
        """
        with self._lock:
            if self._failure is not None:
                raise self._failure
            delivery = Delivery(sample=self._sample, events=tuple(self._events))
            self._sample = None
            self._events.clear()
        return delivery


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """How long to wait before the next attempt: 1, 2, 4 ... 30 s, each varied by up to 20 %."""

    attempts: int = 0

    def delay_s(self, uniform: Callable[[], float]) -> float:
        """Seconds to wait now; `uniform` returns a number in 0..1."""
        base_s = min(BACKOFF_LIMIT_S, BACKOFF_FIRST_S * 2.0 ** min(self.attempts, 10))
        return base_s * (1.0 + BACKOFF_JITTER * (2.0 * uniform() - 1.0))

    def next(self) -> Backoff:
        """One failed attempt more."""
        return Backoff(attempts=self.attempts + 1)


class Stop(Protocol):
    """The part of `threading.Event` the capture loop needs."""

    def is_set(self) -> bool:
        """Whether to end."""

    def wait(self, timeout: float) -> bool:
        """Wait; True as soon as it is set."""


class Connection:
    """Keeps one driver open and reading: the body of the capture thread, without the thread.

    Reconnects after `errors_in_a_row` failures, at once when the device is gone, and after
    `lost_after_s` of silence. A device that refuses to open is tried again after a back-off; one
    that opens but stays silent is listened to for as long before it is opened anew.
    """

    def __init__(
        self,
        driver: Driver,
        mailbox: Mailbox,
        finder: FactFinder,
        stop: Stop,
        *,
        lost_after_s: Callable[[Traits], float],
        errors_in_a_row: int = 3,
        clock: Clock = time.monotonic,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self._driver = driver
        self._mailbox = mailbox
        self._finder = finder
        self._stop = stop
        self._lost_after_s = lost_after_s
        self._errors_in_a_row = errors_in_a_row
        self._clock = clock
        self._uniform = uniform
        self._backoff = Backoff()
        self.opened = 0
        self.last_error: str | None = None

    def run(self) -> None:
        """Open and read until stopped or the source has ended; the driver is closed in the end."""
        try:
            ended = False
            while not ended and not self._stop.is_set():
                ended = self._opened() and self._read_until_broken()
                self._driver.close()
        finally:
            self._driver.close()

    def _opened(self) -> bool:
        try:
            self._driver.open()
        except SensorError as error:
            self._report(error)
            self._stop.wait(self._backoff.delay_s(self._uniform))
            self._backoff = self._backoff.next()
            return False
        self.opened += 1
        return True

    def _read_until_broken(self) -> bool:
        """True when the source has come to its end, False when it should be opened again."""
        errors, heard_s = 0, self._clock()
        lost_after_s = self._lost_after_s(self._driver.traits)
        patience_s = lost_after_s if self._backoff.attempts == 0 else self._backoff.delay_s(self._uniform)
        while not self._stop.is_set():
            try:
                frame = self._driver.read(READ_TIMEOUT_S)
            except SourceEndedError:
                self._mailbox.put(None, Ended(at_s=self._clock()))
                return True
            except SensorError as error:
                errors += 1
                self._report(error)
                if error.gone or errors >= self._errors_in_a_row:
                    # The next open may succeed on a device that then fails at once: wait here, not only there.
                    self._stop.wait(self._backoff.delay_s(self._uniform))
                    self._backoff = self._backoff.next()
                    return False
                self._stop.wait(self._driver.traits.period_s)
                continue
            now_s = self._clock()
            if frame is not None:
                errors, heard_s, patience_s = 0, now_s, lost_after_s
                self._backoff = Backoff()
                if self._deliver(frame, now_s):
                    return True
            elif now_s - heard_s > patience_s:
                self._backoff = self._backoff.next()
                return False
        return False

    def _deliver(self, frame: Frame, now_s: float) -> bool:
        seen = self._finder.facts(frame, self._driver.traits, now_s)
        end = (Ended(at_s=now_s),) if frame.last else ()
        self._mailbox.put(Sample(frame=frame, at_s=now_s), seen, *end)
        return frame.last

    def _report(self, error: SensorError) -> None:
        self.last_error = str(error)
        self._mailbox.put(None, ReadFailed(at_s=self._clock(), gone=error.gone, message=str(error)))


class Capture:
    """A `Connection` in its own daemon thread."""

    def __init__(
        self,
        name: str,
        driver: Driver,
        doorbell: Doorbell,
        *,
        finder: FactFinder,
        lost_after_s: Callable[[Traits], float],
        errors_in_a_row: int = 3,
    ) -> None:
        self.name = name
        self.mailbox = Mailbox(doorbell)
        self._driver = driver
        self._stop = threading.Event()
        self._connection = Connection(
            driver,
            self.mailbox,
            finder,
            self._stop,
            lost_after_s=lost_after_s,
            errors_in_a_row=errors_in_a_row,
        )
        self._thread = threading.Thread(target=self._run, name=f"capture-{name}", daemon=True)

    @property
    def traits(self) -> Traits:
        """The driver's."""
        return self._driver.traits

    @property
    def received(self) -> int:
        """Samples that have arrived so far."""
        return self.mailbox.received

    @property
    def counts(self) -> Counts:
        """Samples and reconnects so far; any thread may ask."""
        reconnects = max(0, self._connection.opened - 1)
        box = self.mailbox
        return Counts(received=box.received, dropped=box.dropped, reconnects=reconnects, overflows=box.overflows)

    @property
    def waiting(self) -> bool:
        """Whether a sample is there to be taken."""
        return self.mailbox.waiting

    def take(self) -> Delivery:
        """What is new; see `Mailbox.take`."""
        return self.mailbox.take()

    @property
    def last_error(self) -> str | None:
        """The newest failure in the driver's words."""
        return self._connection.last_error

    def start(self) -> None:
        """Start the thread; the device is opened in it."""
        self._thread.start()

    def request_stop(self) -> None:
        """Ask the thread to end after its present read; an open in progress is ended where the driver can."""
        self._stop.set()
        if isinstance(self._driver, Interruptible):
            self._driver.interrupt()

    def join(self, timeout_s: float) -> bool:
        """True if the thread has ended; a hung driver is left behind as a daemon."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._connection.run()
        except Exception as error:  # noqa: BLE001 - handed to the reader, which raises it
            self.mailbox.fail(error)
