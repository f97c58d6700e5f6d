"""How long an injected fault goes unnoticed: every kind of fault on every kind of sensor, on a simulated clock.

The path is the runtime's: `FaultyDriver`, `FactFinder`, `health.step`, `skew`; only the threads are missing, and the
pictures come from a pool that is rendered once and read from another place in each trial.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mars_edge.errors import SensorError
from mars_edge.faults import TIMING_FAULTS, Fault, IntermittentPhases
from mars_runtime import fingerprint, health, skew
from mars_runtime.capture import Sample
from mars_runtime.facts import FactFinder
from mars_runtime.fingerprint import Fingerprint
from mars_runtime.grading.scenery import SENSORS, SensorName, Source, samples, source
from mars_runtime.health import Event, Health, ReadFailed
from mars_runtime.limits import Limits, kind_of, limits_of
from mars_runtime.sensors.driver import Frame
from mars_runtime.sensors.faulty import FaultyDriver
from mars_runtime.skew import Stamp

BEFORE_S = 2.0
FAULT_S = 5.0
AFTER_S = 3.0
_STEP_S = 1.0 / 60.0
_TICK_STEPS = 2
TICK_S = _STEP_S * _TICK_STEPS
# Between the exposure and the arrival of a sample.
LATENCY_S = 0.02
# The slowest sensor that is watched beside the one with the fault.
_REFERENCE_PERIOD_S = 1.0 / 15.0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One fault on one sensor once.

    Attributes:
        delay_s: from the start of the fault until it was noticed; None if it was not while it lasted.
        mask_delay_s: until the sensor was masked; None if it was not.
        reason: what it was first taken for; "" where it was not noticed.
        held: share of the fault, after it was noticed, during which the sensor was masked or degraded.
        back_s: from the end of the fault until the sensor was in full use; None if not within 3 s.
        early: a fault was reported before there was one.
        limit_s: by when the table wants it masked; None where it does not.
    """

    fault: str
    sensor: SensorName
    learned: bool
    seed: int
    delay_s: float | None
    mask_delay_s: float | None
    reason: str
    held: float
    back_s: float | None
    early: bool
    limit_s: float | None

    @property
    def in_time(self) -> bool:
        """Whether it was masked by when the table wants it to be; true where it does not."""
        return self.limit_s is None or (self.mask_delay_s is not None and self.mask_delay_s <= self.limit_s)


class _Clock:
    def __init__(self) -> None:
        self.now_s = 0.0


class _Healthy:
    """A driver whose frame of each moment comes from a pool."""

    def __init__(self, sensor: Source, pool: Sequence[NDArray[Any]], first: int, phase_s: float, clock: _Clock) -> None:
        self.traits = sensor.traits
        self._sensor = sensor
        self._pool = pool
        self._first = first
        self._phase_s = phase_s
        self._clock = clock
        self._given = -1

    def open(self) -> None:
        """Nothing to open."""

    def read(self, timeout_s: float) -> Frame | None:
        """The next frame once it has arrived."""
        number = int((self._clock.now_s - self._phase_s - LATENCY_S) * self.traits.rate_hz + 1e-6)
        if number <= self._given or self._clock.now_s < self._phase_s + LATENCY_S:
            return None
        self._given = number
        captured_s = self._phase_s + number / self.traits.rate_hz
        return Frame(
            data=self._pool[_there_and_back(self._first + number, len(self._pool))],
            sequence=number if self._sensor.numbered else None,
            captured_s=captured_s if self._sensor.stamped else None,
        )

    def close(self) -> None:
        """Nothing to close."""


def _there_and_back(number: int, count: int) -> int:
    """0, 1 ... count - 1, count - 2 ... 1, 0, 1 ...: never the same twice in a row, and motion stays continuous."""
    at = number % (2 * count - 2)
    return at if at < count else 2 * count - 2 - at


def learned_from(sensor: SensorName, count: int, seed: int) -> Fingerprint:
    """The fingerprint of the moving stream, arriving on time."""
    own = source(sensor)
    frames = samples("moving", sensor, count, seed)
    given = [
        Sample(frame=Frame(data=data, sequence=n if own.numbered else None), at_s=n / own.traits.rate_hz)
        for n, data in enumerate(frames)
    ]
    return fingerprint.learn(given, own.modality, own.traits)


def table_limit_s(fault: str, own: Source, limits: Limits, seed: int) -> float | None:
    """By when the fault table wants a timing fault masked; None for faults that it does not mask.

    One decision later than the limit, and one sample later where only a sample can show it. An intermittent connection
    is a fault of the table once it is down for as long as that.
    """
    if fault not in TIMING_FAULTS:
        return None
    late_s = limits.period_s + TICK_S
    if fault == "unplug":
        return late_s
    if fault == "stuck":
        # Of compressed video a standing picture is only suspect.
        return max(limits.frozen_frames * limits.period_s, limits.frozen_s) + late_s if own.traits.raw else None
    silent_s = min(limits.stale_after_s, limits.callback_s) + late_s
    return silent_s + (_first_long_silence_s(silent_s, seed) if fault == "intermittent" else 0.0)


def _first_long_silence_s(longer_than_s: float, seed: int) -> float:
    """When an intermittent connection first goes down for that long, seconds from its beginning."""
    phases, began_s, number = IntermittentPhases(seed), 0.0, 0
    while number * _STEP_S - began_s <= longer_than_s:
        if phases.up(number * _STEP_S):
            began_s = (number + 1) * _STEP_S
        number += 1
    return began_s


def trials(
    faults: Sequence[str], sensors: Sequence[SensorName], seeds: int, *, pool: int, learn_from: int
) -> Iterator[Trial]:
    """Every fault on every sensor with every seed, each judged twice: by the default limits and by learned ones."""
    for sensor in sensors:
        found = learned_from(sensor, learn_from, seed=1)
        for fault in faults:
            for seed in range(seeds):
                yield from _trial(fault, sensor, seed, pool, found)


def _trial(fault: str, sensor: SensorName, seed: int, pool: int, found: Fingerprint) -> Iterator[Trial]:
    own = source(sensor)
    usual = limits_of(kind_of(own.modality), own.traits)
    rng = np.random.default_rng([SENSORS.index(sensor), seed])
    start_s = BEFORE_S + float(rng.uniform(0.0, own.traits.period_s))
    clock = _Clock()
    driver = _Healthy(
        own, samples("moving", sensor, pool, 1), int(rng.integers(pool)), float(rng.uniform(0.0, 0.06)), clock
    )
    injected = Fault(sensor=sensor, kind=fault, start_s=start_s, length_s=FAULT_S)
    faulty = FaultyDriver(driver, [injected], stream_s=lambda: clock.now_s, seed=seed)
    watches = [_Watch(limits) for limits in (usual, fingerprint.apply(usual, found))]
    finder = FactFinder.of(own.modality)
    events: list[Event] = []
    for number in range(1, round((start_s + FAULT_S + AFTER_S) / _STEP_S)):
        clock.now_s = number * _STEP_S
        events += _events(faulty, finder, clock.now_s)
        if number % _TICK_STEPS == 0:
            for watch in watches:
                watch.tick(events, clock.now_s)
            events = []
    for watch, learned in zip(watches, (False, True), strict=True):
        limit_s = table_limit_s(fault, own, watch.limits, seed)
        yield watch.trial(fault, sensor, seed, start_s, learned=learned, limit_s=limit_s)


def _events(driver: FaultyDriver, finder: FactFinder, now_s: float) -> list[Event]:
    try:
        frame = driver.read(0.0)
    except SensorError as error:
        return [ReadFailed(at_s=now_s, gone=error.gone)]
    return [] if frame is None else [finder.facts(frame, driver.traits, now_s)]


class _Watch:
    """What health says of one sensor, tick by tick."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._state = Health(started_s=0.0)
        self._said: list[tuple[float, str, str]] = []
        self._stamped_s: float | None = None

    def tick(self, events: Sequence[Event], now_s: float) -> None:
        """One decision."""
        self._state = health.step(self._state, events, now_s, self.limits)
        for event in events:
            self._stamped_s = getattr(event, "stamped_s", self._stamped_s)
        said = health.summary(self._state, now_s)
        status, reason = said.status, said.reason or ""
        if status != "missing" and self._stamped_s is not None:
            # As the loop does with a sample whose stamp is off or too old.
            status, reason = self._by_stamp(now_s) or (status, reason)
        self._said.append((now_s, status, reason))

    def _by_stamp(self, now_s: float) -> tuple[Any, str] | None:
        assert self._stamped_s is not None
        if now_s - self._stamped_s > self.limits.stale_after_s:
            return "missing", "stale"
        # A sensor that is well beside it has the newest picture there can be.
        newest_s = now_s - LATENCY_S - ((now_s - LATENCY_S) % _REFERENCE_PERIOD_S)
        reference = Stamp(stamped_s=newest_s, limits=Limits(period_s=_REFERENCE_PERIOD_S))
        own = Stamp(stamped_s=self._stamped_s, limits=self.limits)
        return ("missing", "skew") if "own" in skew.skewed({"reference": reference, "own": own}) else None

    def trial(
        self, fault: str, sensor: SensorName, seed: int, start_s: float, *, learned: bool, limit_s: float | None
    ) -> Trial:
        """What was said of a fault that began at `start_s`."""
        end_s = start_s + FAULT_S
        # A sensor says "starting" until its first sample.
        before = [said for said in self._said if 0.5 <= said[0] < start_s]
        during = [said for said in self._said if start_s <= said[0] < end_s]
        after = [said for said in self._said if said[0] >= end_s]
        noticed = [said for said in during if said[1] != "ok"]
        masked = [said for said in noticed if said[1] == "missing"]
        since = [said for said in during if noticed and said[0] >= noticed[0][0]]
        bad = [said[0] for said in after if said[1] != "ok"]
        back_s = (bad[-1] + TICK_S if bad else end_s) - end_s
        return Trial(
            fault=fault,
            sensor=sensor,
            learned=learned,
            seed=seed,
            delay_s=noticed[0][0] - start_s if noticed else None,
            mask_delay_s=masked[0][0] - start_s if masked else None,
            reason=noticed[0][2] if noticed else "",
            held=len(noticed) / len(since) if since else 0.0,
            back_s=None if bad and bad[-1] >= after[-1][0] else back_s,
            early=any(said[1] != "ok" for said in before),
            limit_s=limit_s,
        )
