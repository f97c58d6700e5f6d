"""The sensors of one stream: a capture thread each, faults on request, an end within two seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mars_edge.errors import UsageError
from mars_edge.faults import Fault
from mars_edge.modality import Modality
from mars_runtime import health
from mars_runtime.capture import Capture, Doorbell
from mars_runtime.facts import FactFinder
from mars_runtime.limits import Limits
from mars_runtime.sensors.driver import Driver
from mars_runtime.sensors.faulty import FaultyDriver

_JOIN_S = 2.0


class SensorSet:
    """Drivers with their threads; `captures` are what a decision loop takes from.

    Args:
        drivers: by sensor; not opened here.
        modalities: what each sensor feeds.
        health: overrides of `Limits` by sensor.
        faults: injected ones; their times count from `begin`.
        live_faults: faults may be injected while it runs.
        seed: of the injected faults.

    Raises:
        UsageError: a bad health setting.
    """

    def __init__(
        self,
        drivers: Mapping[str, Driver],
        modalities: Mapping[str, Modality],
        *,
        health: Mapping[str, Mapping[str, Any]],
        faults: Sequence[Fault] = (),
        live_faults: bool = False,
        seed: int = 0,
    ) -> None:
        self._began_s: float | None = None
        self._faults = list(faults)
        self._changing_faults = threading.Lock()
        self._faulty = _wrapped(drivers, faults, seed, self.time_s, every=live_faults)
        drivers = {**drivers, **self._faulty}
        self.traits = {name: driver.traits for name, driver in drivers.items()}
        self.doorbell = Doorbell()
        self.captures = {
            name: _capture(name, driver, modalities[name], health.get(name, {}), self.doorbell)
            for name, driver in drivers.items()
        }

    def start(self) -> None:
        """Start the threads; each opens its device."""
        for capture in self.captures.values():
            capture.start()

    def begin(self) -> None:
        """Let the faults' time run from now, unless it runs already."""
        if self._began_s is None:
            self._began_s = time.monotonic()

    def time_s(self) -> float:
        """Seconds since `begin`, 0 before it; any thread may ask."""
        return 0.0 if self._began_s is None else time.monotonic() - self._began_s

    def inject(self, fault: Fault) -> None:
        """Break a sensor from `fault.start_s` seconds after now, beside the faults there are; any thread may ask.

        Raises:
            UsageError: no such sensor, or it was made without `live_faults`.
        """
        self.need(fault.sensor)
        faulty = self._faulty.get(fault.sensor)
        if faulty is None:
            raise UsageError(f"{fault}: this stream takes no faults while it runs; open it with live_faults=True")
        with self._changing_faults:
            self._faults.append(replace(fault, start_s=self.time_s() + fault.start_s))
            faulty.set_faults([each for each in self._faults if each.sensor == fault.sensor])

    def clear_faults(self) -> None:
        """End every injected fault, those of the start included; any thread may ask."""
        with self._changing_faults:
            self._faults.clear()
            for faulty in self._faulty.values():
                faulty.set_faults(())

    def need(self, name: str) -> None:
        """Refuse a name that no source was named for.

        Raises:
            UsageError: with the names there are.
        """
        if name not in self.captures:
            raise UsageError(f"no sensor {name!r} in this stream; sensors: {', '.join(self.captures)}")

    def close(self) -> list[str]:
        """Stop all threads, at most 2 s in all; the names of sensors whose driver hangs and was left behind."""
        for capture in self.captures.values():
            capture.request_stop()
        until_s = time.monotonic() + _JOIN_S
        return [c.name for c in self.captures.values() if not c.join(max(0.0, until_s - time.monotonic()))]


def _capture(
    name: str, driver: Driver, modality: Modality, overrides: Mapping[str, Any], doorbell: Doorbell
) -> Capture:
    def limits(period_s: float) -> Limits:
        return health.with_overrides(Limits(period_s=period_s), overrides, f"sensor.{name}.health")

    return Capture(
        name,
        driver,
        doorbell,
        finder=FactFinder.of(modality),
        lost_after_s=lambda traits: limits(traits.period_s).lost_after_s,
        errors_in_a_row=limits(driver.traits.period_s).errors_in_a_row,
    )


def _wrapped(
    drivers: Mapping[str, Driver],
    faults: Sequence[Fault],
    seed: int,
    stream_s: Callable[[], float],
    *,
    every: bool,
) -> dict[str, FaultyDriver]:
    """The drivers that faults are meant for, or `every` one, wrapped."""
    wrapped: dict[str, FaultyDriver] = {}
    for index, (name, driver) in enumerate(drivers.items()):
        own = [fault for fault in faults if fault.sensor == name]
        if own or every:
            wrapped[name] = FaultyDriver(driver, own, stream_s=stream_s, seed=seed + index)
    return wrapped
