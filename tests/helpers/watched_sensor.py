"""One real sensor with its capture thread and its health, as the decision loop sees them, and what it costs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from mars_edge.modality import Modality
from mars_runtime import health
from mars_runtime.health import Health, Summary
from mars_runtime.limits import Limits, kind_of, limits_of, with_overrides
from mars_runtime.sensor_set import SensorSet
from mars_runtime.sensors.driver import Driver

_POLL_S = 0.01


class Watched:
    """Steps the sensor's health a hundred times a second while somebody waits; a context manager.

    The flap guard is off by default: a test that breaks a sensor on purpose all the time is what it guards against.
    """

    def __init__(self, driver: Driver, modality: Modality, **overrides: Any) -> None:
        self._modality = modality
        self._overrides = {"flap_changes": 10**6, **overrides}
        name = modality.name
        self._sensors = SensorSet({name: driver}, {name: modality}, health={name: self._overrides})
        self._capture = self._sensors.captures[name]
        self._state: Health | None = None
        self.sample_s: float | None = None

    def __enter__(self) -> Watched:
        self._state = Health(started_s=time.monotonic())
        self._sensors.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        hung = self._sensors.close()
        assert not hung or error is not None, hung

    @property
    def limits(self) -> Limits:
        """By the driver's own present rate."""
        return with_overrides(limits_of(kind_of(self._modality), self._capture.traits), self._overrides, "watched")

    @property
    def last_error(self) -> str | None:
        """The newest failure in the driver's words."""
        return self._capture.last_error

    def step(self) -> Summary:
        """Take what is new and judge it now."""
        assert self._state is not None
        delivery, now_s = self._capture.take(), time.monotonic()
        if delivery.sample is not None:
            self.sample_s = delivery.sample.at_s
        self._state = health.step(self._state, delivery.events, now_s, self.limits)
        return health.summary(self._state, now_s)

    def until(self, condition: Callable[[Summary], bool], limit_s: float) -> tuple[float, Summary]:
        """When the condition first held, on the monotonic clock, and the summary that met it.

        Raises:
            AssertionError: not within `limit_s`; says what was there instead.
        """
        begin_s = time.monotonic()
        while True:
            found = self.step()
            now_s = time.monotonic()
            if condition(found):
                return now_s, found
            assert now_s - begin_s < limit_s, f"{found} after {limit_s:g} s; last error: {self.last_error}"
            time.sleep(_POLL_S)


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What this process holds at one moment."""

    threads: int
    descriptors: int
    children: int
    resident_mib: float


def footprint() -> Footprint:
    """Of this process now; its own helper processes count as children."""
    tasks = Path("/proc/self/task")
    children = sum(len((task / "children").read_text().split()) for task in tasks.iterdir())
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Footprint(
        threads=threading.active_count(),
        descriptors=sum(1 for _ in Path("/proc/self/fd").iterdir()),
        children=children,
        resident_mib=pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
    )
