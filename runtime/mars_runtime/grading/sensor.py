"""A sensor of the bench, read step by step on a simulated clock instead of by a thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from mars_edge.errors import SensorError
from mars_runtime.capture import Delivery, Sample
from mars_runtime.facts import FactFinder
from mars_runtime.grading.scenery import Source
from mars_runtime.health import Event, ReadFailed
from mars_runtime.sensors.driver import Driver, Frame, Traits

# Between the exposure and the arrival of a sample.
LATENCY_S = 0.02


class Clock:
    """Simulated seconds; whoever owns it moves it."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        """The time now."""
        return self.now_s


class HealthySensor:
    """A driver whose frame of each moment comes from a pool, first forwards, then backwards, and so on."""

    def __init__(
        self, kind: Source, pool: Sequence[NDArray[Any]], clock: Clock, *, first: int = 0, phase_s: float = 0.0
    ) -> None:
        self.traits = kind.traits
        self._kind = kind
        self._pool = pool
        self._first = first
        self._phase_s = phase_s
        self._clock = clock
        self._given = -1

    def open(self) -> None:
        """Nothing to open."""

    def read(self, timeout_s: float) -> Frame | None:
        """The newest frame that has arrived, once."""
        arrived_s = self._clock() - self._phase_s - LATENCY_S
        # The nudge keeps a frame that is due now from waiting for the next step.
        number = int(arrived_s * self.traits.rate_hz + 1e-6)
        if arrived_s < -1e-9 or number <= self._given:
            return None
        self._given = number
        captured_s = self._phase_s + number / self.traits.rate_hz
        return Frame(
            data=self._pool[there_and_back(self._first + number, len(self._pool))],
            sequence=number if self._kind.numbered else None,
            captured_s=captured_s if self._kind.stamped else None,
        )

    def close(self) -> None:
        """Nothing to close."""


def there_and_back(number: int, count: int) -> int:
    """0, 1 ... count - 1, count - 2 ... 1, 0, 1 ...: never the same twice in a row, and motion stays continuous."""
    at = number % (2 * count - 2)
    return at if at < count else 2 * count - 2 - at


class StepFeed:
    """A driver as the decision loop sees it: `step` does what a capture thread would do at this moment."""

    def __init__(self, driver: Driver, finder: FactFinder, clock: Clock) -> None:
        self._driver = driver
        self._finder = finder
        self._clock = clock
        self._sample: Sample | None = None
        self._events: list[Event] = []
        self.received = 0
        self.last_error: str | None = None

    @property
    def traits(self) -> Traits:
        """The driver's."""
        return self._driver.traits

    @property
    def waiting(self) -> bool:
        """Whether a sample is there to be taken."""
        return self._sample is not None

    def step(self) -> None:
        """Read once."""
        now_s = self._clock()
        try:
            frame = self._driver.read(0.0)
        except SensorError as error:
            self.last_error = str(error)
            self._events.append(ReadFailed(at_s=now_s, gone=error.gone))
            return
        if frame is not None:
            self.received += 1
            self._sample = Sample(frame=frame, at_s=now_s)
            self._events.append(self._finder.facts(frame, self.traits, now_s))

    def take(self) -> Delivery:
        """What is new since the last call."""
        taken = Delivery(sample=self._sample, events=tuple(self._events))
        self._sample, self._events = None, []
        return taken
