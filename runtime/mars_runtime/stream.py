"""Sensors, capture threads and the decision loop put together, and taken apart again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from mars_edge.errors import UsageError
from mars_edge.faults import Fault
from mars_edge.manifest import Manifest
from mars_runtime.capture import Counts, Sample
from mars_runtime.decision import Decision
from mars_runtime.engines.protocol import Engine
from mars_runtime.pipeline import Pipeline, Settings
from mars_runtime.sensor_set import SensorSet
from mars_runtime.sensors.driver import Driver
from mars_runtime.sensors.simulated import RIG_MODALITIES, World
from mars_runtime.sensors.source import SensorSpec, check_names, make_drivers
from mars_runtime.tick import Tick


class Stream:
    """A running set of sensors and the decisions made from them: a context manager that is iterated once.

    Every driver is made, and every file looked at, before the first thread starts. `for decision in stream` decides in
    the caller's thread; `async for` in a thread of its own, one decision per turn of the caller. `async with` opens and
    closes it like `with`, without holding up the event loop.

    Args:
        engine: stays open when the stream closes, unless `on_close` closes it.
        specs: sources as a user writes them.
        drivers: sources as objects, by sensor, beside the specs.
        faults: injected ones; their times count from the first decision.
        live_faults: `inject` may be called while it runs.
        seed: of the simulated rig and the injected faults.
        witness: is told of every decision and its causes, in the loop's thread.
        on_close: called once when everything has ended.

    Raises:
        UsageError: an unknown or repeated sensor name, a bad source, or a bad health setting.
    """

    def __init__(
        self,
        engine: Engine,
        specs: Sequence[SensorSpec],
        settings: Settings,
        *,
        drivers: Mapping[str, Driver] | None = None,
        faults: Sequence[Fault] = (),
        live_faults: bool = False,
        seed: int = 0,
        witness: Callable[[Tick], None] | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        manifest = engine.manifest
        own = dict(drivers or {})
        check_names([*specs, *(SensorSpec(name=name, source="driver") for name in own)], manifest.names)
        self.manifest = manifest
        self.world = World(seed, rig_rate_hz(manifest))
        made = make_drivers(specs, {name: manifest.modality(name) for name in manifest.names}, self.world)
        self._sensors = SensorSet(
            {**made, **own},
            {modality.name: modality for modality in manifest.modalities},
            health=settings.health,
            faults=faults,
            live_faults=live_faults,
            seed=seed,
        )
        self.traits = self._sensors.traits
        self._on_close = on_close
        self._entered = False
        self._pipeline = Pipeline(
            engine, self._sensors.captures, settings, doorbell=self._sensors.doorbell, witness=witness
        )

    def __enter__(self) -> Stream:
        self._sensors.start()
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Stream:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Closing waits for threads and files; the event loop goes on meanwhile.
        await asyncio.to_thread(self.close)

    def __iter__(self) -> Iterator[Decision]:
        return self.decisions()

    def decisions(self) -> Iterator[Decision]:
        """See `Pipeline.decisions`.

        Raises:
            UsageError: the stream was not entered.
        """
        if not self._entered:
            raise UsageError("the stream's sensors are not started: use it as `with ... as stream` or `async with`")
        for decision in self._pipeline.decisions():
            self._sensors.begin()
            yield decision

    async def __aiter__(self) -> AsyncIterator[Decision]:
        decisions = self.decisions()
        loop = asyncio.get_running_loop()
        worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decisions")
        try:
            while (decision := await loop.run_in_executor(worker, next, decisions, None)) is not None:
                yield decision
        finally:
            # A cancelled task leaves a decision under way: the stop makes its wait short.
            self.stop()
            worker.shutdown()

    def time_s(self) -> float:
        """Seconds since the first decision, 0 before it; any thread may ask."""
        return self._sensors.time_s()

    def latest(self, name: str) -> Sample | None:
        """The newest sample of a sensor, used or not; None before the first; any thread may ask.

        Raises:
            UsageError: no source was named for `name`.
        """
        self._sensors.need(name)
        return self._pipeline.latest(name)

    def counts(self) -> dict[str, Counts]:
        """By sensor, what its capture thread counted; any thread may ask."""
        return {name: capture.counts for name, capture in self._sensors.captures.items()}

    def errors(self) -> dict[str, str]:
        """By sensor, the newest failure in its driver's words; sensors that never failed are left out."""
        found = {name: capture.last_error for name, capture in self._sensors.captures.items()}
        return {name: error for name, error in found.items() if error is not None}

    def inject(self, fault: Fault) -> None:
        """Break a sensor from `fault.start_s` seconds after now, beside the faults there are; any thread may ask.

        Raises:
            UsageError: no source was named for the fault's sensor, or the stream was opened without `live_faults`.
        """
        self._sensors.inject(fault)

    def clear_faults(self) -> None:
        """End every injected fault, those of the start included; any thread may ask."""
        self._sensors.clear_faults()

    def stop(self) -> None:
        """End `decisions` soon; callable from a signal handler."""
        self._pipeline.stop()

    def close(self) -> list[str]:
        """Stop all threads, at most 2 s in all; the names of sensors whose driver hangs and was left behind."""
        self.stop()
        hung = self._sensors.close()
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()
        return hung


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
