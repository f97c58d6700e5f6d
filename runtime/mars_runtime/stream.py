"""Sensors, capture threads and the decision loop put together, and taken apart again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType

from mars_edge.errors import UsageError
from mars_edge.faults import Fault
from mars_edge.manifest import Manifest
from mars_runtime import health
from mars_runtime.capture import Capture, Doorbell, Sample
from mars_runtime.decision import Decision
from mars_runtime.engines.protocol import Engine
from mars_runtime.health import Limits
from mars_runtime.pipeline import Pipeline, Settings
from mars_runtime.sensors.driver import Driver
from mars_runtime.sensors.faulty import FaultyDriver
from mars_runtime.sensors.simulated import RIG_MODALITIES, World
from mars_runtime.sensors.source import SensorSpec, check_names, make_driver

_JOIN_S = 2.0


class Stream:
    """A running set of sensors and the decisions made from them; use it as a context manager.

    Every driver is made, and every file looked at, before the first thread starts.

    Raises:
        UsageError: an unknown or repeated sensor name, a bad source, a bad health setting, or a model whose answer is
            no single decision.
    """

    def __init__(
        self,
        engine: Engine,
        specs: Sequence[SensorSpec],
        settings: Settings,
        *,
        faults: Sequence[Fault] = (),
        live_faults: bool = False,
        seed: int = 0,
    ) -> None:
        manifest = engine.manifest
        if manifest.task != "classification":
            raise UsageError(
                f"{manifest.name} answers with a map ({manifest.task}); streams decide for classification only, "
                "`mars-edge evaluate --model FILE` measures it"
            )
        check_names(specs, manifest.names)
        self._first_s: float | None = None
        self.world = World(seed, rig_rate_hz(manifest))
        drivers = {spec.name: make_driver(spec, manifest.modality(spec.name), self.world) for spec in specs}
        self._faults = list(faults)
        self._changing_faults = threading.Lock()
        self._faulty = _wrapped(drivers, faults, seed, self.time_s, every=live_faults)
        drivers |= self._faulty
        self.traits = {name: driver.traits for name, driver in drivers.items()}
        self._doorbell = Doorbell()
        self._captures = {name: self._capture(name, d, manifest, settings) for name, d in drivers.items()}
        self._pipeline = Pipeline(engine, self._captures, settings, doorbell=self._doorbell)

    def _capture(self, name: str, driver: Driver, manifest: Manifest, settings: Settings) -> Capture:
        overrides, modality = settings.health.get(name, {}), manifest.modality(name)

        def limits(period_s: float) -> Limits:
            return health.with_overrides(Limits(period_s=period_s), overrides, f"sensor.{name}.health")

        return Capture(
            name,
            driver,
            self._doorbell,
            depth=modality.kind == "image" and modality.dtype == "uint16",
            lost_after_s=lambda traits: limits(traits.period_s).lost_after_s,
            errors_in_a_row=limits(driver.traits.period_s).errors_in_a_row,
        )

    def __enter__(self) -> Stream:
        for capture in self._captures.values():
            capture.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def decisions(self) -> Iterator[Decision]:
        """See `Pipeline.decisions`."""
        for decision in self._pipeline.decisions():
            if self._first_s is None:
                self._first_s = time.monotonic()
            yield decision

    def time_s(self) -> float:
        """Seconds since the first decision, 0 before it; any thread may ask."""
        return 0.0 if self._first_s is None else time.monotonic() - self._first_s

    def latest(self, name: str) -> Sample | None:
        """The newest sample of a sensor, used or not; None before the first; any thread may ask.

        Raises:
            UsageError: no source was named for `name`.
        """
        self._need_source(name)
        return self._pipeline.latest(name)

    def inject(self, fault: Fault) -> None:
        """Break a sensor from `fault.start_s` seconds after now, beside the faults there are; any thread may ask.

        Raises:
            UsageError: no source was named for the fault's sensor, or the stream was opened without `live_faults`.
        """
        self._need_source(fault.sensor)
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

    def _need_source(self, name: str) -> None:
        if name not in self._captures:
            raise UsageError(f"no sensor {name!r} in this stream; sensors: {', '.join(self._captures)}")

    def stop(self) -> None:
        """End `decisions` soon; callable from a signal handler."""
        self._pipeline.stop()

    def close(self) -> list[str]:
        """Stop all threads, at most 2 s in all; the names of sensors whose driver hangs and was left behind."""
        for capture in self._captures.values():
            capture.request_stop()
        until_s = time.monotonic() + _JOIN_S
        return [c.name for c in self._captures.values() if not c.join(max(0.0, until_s - time.monotonic()))]


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


def rig_rate_hz(manifest: Manifest) -> float:
    """The simulated rig runs at the rate of the fastest picture the model takes, else at 15 Hz."""
    return max((m.rate_hz for m in manifest.modalities if m.kind == "image"), default=15.0)


def default_specs(manifest: Manifest) -> list[SensorSpec]:
    """The simulated rig for every modality.

    Raises:
        UsageError: the model wants something the rig has not; says which sensors to name.
    """
    if not set(manifest.names) <= set(RIG_MODALITIES):
        wanted = " ".join(f"--sensor {name}=SOURCE" for name in manifest.names)
        raise UsageError(
            f"{manifest.name} takes {', '.join(manifest.names)}, which the simulated rig has not: {wanted}"
        )
    return [SensorSpec(name=name, source="sim:") for name in manifest.names]
